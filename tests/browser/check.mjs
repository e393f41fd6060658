// Open every page of a folder in headless Chromium, at two widths, light and dark, and judge it.
//
//   node check.mjs FOLDER [name ...]        CHROMIUM=/path/to/chromium if it is not found
//
// A page passes if axe finds nothing, if it does not scroll sideways, if it asks for nothing from
// the network, and if the browser reports no error. A screenshot of each is left in FOLDER.
import { readdir } from "node:fs/promises";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { faults, newPage, openBrowser, SCHEMES, Verdicts, WIDTHS } from "./browser.mjs";

async function judge(browser, file, width, scheme) {
  const found = [];
  const page = await newPage(browser, found, /^(file|data):/);
  await page.setBypassCSP(true); // for axe alone: the page itself has no script
  await page.setViewport({ width, height: 900 });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await page.goto(pathToFileURL(file).href, { waitUntil: "load", timeout: 120_000 });
  const shot = file.replace(/\.html$/, `-${width}-${scheme}.png`);
  await page.screenshot({ path: shot, fullPage: true, captureBeyondViewport: true });
  found.push(...(await faults(page, width)));
  await page.close();
  return found;
}

const [folder, ...names] = process.argv.slice(2);
const files = (await readdir(folder)).filter((name) => name.endsWith(".html")).sort();
const chosen = names.length ? files.filter((f) => names.some((n) => f.startsWith(n))) : files;
const verdicts = new Verdicts();
const browser = await openBrowser();
try {
  for (const name of chosen) {
    for (const width of WIDTHS) {
      for (const scheme of SCHEMES) {
        const found = await judge(browser, path.resolve(folder, name), width, scheme);
        verdicts.say(`${name} at ${width} px, ${scheme}`, found);
      }
    }
  }
} finally {
  await browser.close();
}
process.exit(verdicts.end());

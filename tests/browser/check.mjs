// Open every page of a folder in headless Chromium, at two widths, light and dark, and judge it.
//
//   node check.mjs FOLDER [name ...]        CHROMIUM=/path/to/chromium if it is not found
//
// A page passes if axe finds nothing, if it does not scroll sideways, if it asks for nothing from
// the network, and if the browser reports no error. A screenshot of each is left in FOLDER.
import { access, readdir, readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";
import puppeteer from "puppeteer-core";

const WIDTHS = [1280, 390];
const SCHEMES = ["light", "dark"];
const PLACES = [
  "/usr/bin/chromium",
  "/usr/bin/chromium-browser",
  "/usr/bin/google-chrome",
  "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
];
const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

async function findBrowser() {
  if (process.env.CHROMIUM) return process.env.CHROMIUM;
  for (const place of PLACES) {
    try {
      await access(place);
      return place;
    } catch {}
  }
  throw new Error(`no Chromium at ${PLACES.join(", ")}; set CHROMIUM to its path`);
}

async function judge(browser, file, width, scheme) {
  const page = await browser.newPage();
  const found = [];
  page.on("pageerror", (error) => found.push(`error: ${error.message}`));
  page.on("console", (line) => line.type() === "error" && found.push(`console: ${line.text()}`));
  page.on("request", (request) => {
    if (!/^(file|data):/.test(request.url())) found.push(`asks for ${request.url()}`);
  });
  await page.setBypassCSP(true); // for axe alone: the page itself has no script
  await page.setViewport({ width, height: 900 });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await page.goto(pathToFileURL(file).href, { waitUntil: "load", timeout: 120_000 });
  const wide = await page.evaluate(() => document.documentElement.scrollWidth);
  if (wide > width) found.push(`scrolls sideways: ${wide} px`);
  const shot = file.replace(/\.html$/, `-${width}-${scheme}.png`);
  await page.screenshot({ path: shot, fullPage: true, captureBeyondViewport: true });
  await page.evaluate(() => document.querySelectorAll("details").forEach((d) => (d.open = true)));
  await page.evaluate(axe);
  const { violations, passes } = await page.evaluate(() => axe.run({ resultTypes: ["violations"] }));
  if (!passes.length) found.push("axe judged nothing");
  for (const { id, impact, help, nodes } of violations) {
    const where = nodes.slice(0, 3).map((node) => `\n      ${node.html.slice(0, 160)}`);
    found.push(`axe ${id} (${impact}), ${nodes.length} times: ${help}${where.join("")}`);
  }
  await page.close();
  return found;
}

const [folder, ...names] = process.argv.slice(2);
const files = (await readdir(folder)).filter((name) => name.endsWith(".html")).sort();
const chosen = names.length ? files.filter((f) => names.some((n) => f.startsWith(n))) : files;
const browser = await puppeteer.launch({
  executablePath: await findBrowser(),
  args: ["--no-sandbox", "--disable-gpu", "--hide-scrollbars"],
  protocolTimeout: 300_000,
});
let views = 0;
let failed = 0;
try {
  console.log(await browser.version());
  for (const name of chosen) {
    for (const width of WIDTHS) {
      for (const scheme of SCHEMES) {
        const found = await judge(browser, path.resolve(folder, name), width, scheme);
        views += 1;
        failed += found.length > 0;
        console.log(`${found.length ? "FAILED" : "ok"}  ${name} at ${width} px, ${scheme}`);
        for (const line of found) console.log(`    ${line}`);
      }
    }
  }
} finally {
  await browser.close();
}
console.log(`${views - failed} passed, ${failed} failed`);
process.exit(failed || !views ? 1 : 0);

// Take pictures of pages in headless Chromium, light and dark: NAME-light.webp and NAME-dark.webp.
//
//   node shoot.mjs OUT PAGE.html [PAGE.html ...]        HEIGHT=1000 for another height than 900
//
// Only the top of a page is taken, as wide as a small laptop shows it.
import path from "node:path";
import { pathToFileURL } from "node:url";
import { newPage, openBrowser, SCHEMES } from "./browser.mjs";

const WIDTH = 1000;
const height = Number(process.env.HEIGHT ?? 900);
const [out, ...files] = process.argv.slice(2);
const browser = await openBrowser();
const found = [];
try {
  for (const file of files) {
    for (const scheme of SCHEMES) {
      const page = await newPage(browser, found, /^(file|data):/);
      await page.setViewport({ width: WIDTH, height });
      await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
      await page.goto(pathToFileURL(path.resolve(file)).href, { waitUntil: "load" });
      const name = `${path.basename(file, ".html")}-${scheme}.webp`;
      await page.screenshot({ path: path.join(out, name), type: "webp", quality: 70 });
      await page.close();
    }
  }
} finally {
  await browser.close();
}
for (const line of found) console.log(line);
process.exit(found.length ? 1 : 0);

// What the checks in headless Chromium share: the browser, what a page may not do, and axe.
import { access, readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import puppeteer from "puppeteer-core";

export const WIDTHS = [1280, 390];
export const SCHEMES = ["light", "dark"];

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

export async function openBrowser() {
  const browser = await puppeteer.launch({
    executablePath: await findBrowser(),
    args: ["--no-sandbox", "--disable-gpu", "--hide-scrollbars"],
    protocolTimeout: 300_000,
  });
  console.log(await browser.version());
  return browser;
}

// A page that notes in `found` what it may not do: fail, or ask for an address of another kind.
export async function newPage(browser, found, allowed) {
  const page = await browser.newPage();
  page.on("pageerror", (error) => found.push(`error: ${error.message}`));
  page.on("console", (line) => line.type() === "error" && found.push(`console: ${line.text()}`));
  page.on("request", (request) => {
    if (!allowed.test(request.url())) found.push(`asks for ${request.url()}`);
  });
  return page;
}

// What is wrong with a page as it is shown now. All of it is opened first.
export async function faults(page, width, severe = () => true) {
  const found = [];
  const wide = await page.evaluate(() => document.documentElement.scrollWidth);
  if (wide > width) found.push(`scrolls sideways: ${wide} px`);
  await page.evaluate(() => document.querySelectorAll("details").forEach((d) => (d.open = true)));
  await page.evaluate(axe);
  const { violations, passes } = await page.evaluate(() => axe.run({ resultTypes: ["violations"] }));
  if (!passes.length) found.push("axe judged nothing");
  for (const { id, impact, help, nodes } of violations) {
    if (!severe(impact)) continue;
    const where = nodes.slice(0, 3).map((node) => `\n      ${node.html.slice(0, 160)}`);
    found.push(`axe ${id} (${impact}), ${nodes.length} times: ${help}${where.join("")}`);
  }
  return found;
}

// Prints a verdict for each view, and at the end how many there were; returns the exit status.
export class Verdicts {
  views = 0;
  failed = 0;

  say(what, found) {
    this.views += 1;
    this.failed += found.length > 0;
    console.log(`${found.length ? "FAILED" : "ok"}  ${what}`);
    for (const line of found) console.log(`    ${line}`);
  }

  end() {
    console.log(`${this.views - this.failed} passed, ${this.failed} failed`);
    return this.failed || !this.views ? 1 : 0;
  }
}

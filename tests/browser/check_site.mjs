// Open every page of the built site in headless Chromium, at two widths, light and dark; use its
// search and the tables of its catalogue.
//
//   node check_site.mjs SITE SHOTS [page ...]      CHROMIUM=/path/to/chromium if it is not found
//
// A page passes if axe finds nothing serious, if it does not scroll sideways, if it asks no other
// server for anything, and if the browser reports no error. Screenshots are left in SHOTS.
// Pages are named as in addresses: how-to/cpu; "search" and "catalogue" name the other checks too.
import { mkdir, readdir, readFile } from "node:fs/promises";
import { createServer } from "node:http";
import path from "node:path";
import { faults, newPage, openBrowser, SCHEMES, Verdicts, WIDTHS } from "./browser.mjs";

const TYPES = { ".html": "text/html", ".css": "text/css", ".js": "text/javascript" };
Object.assign(TYPES, { ".json": "application/json", ".svg": "image/svg+xml", ".png": "image/png" });

// What somebody types, and the pages that have to be among the first results.
const SEARCHES = {
  "softmax 21k": ["how-to/load-and-classify/"],
  resume: ["how-to/resume/"],
  CPU: ["how-to/cpu/"],
  npz: ["how-to/convert/"],
};
const FIRST = 4;
const TALLEST = 12_000; // pixels of a screenshot: Chromium needs minutes for more
const SEVERE = ["serious", "critical"];

// The site on a port of its own, as a host of static pages would show it.
function serve(folder) {
  const server = createServer(async (request, response) => {
    const { pathname } = new URL(request.url, "http://localhost");
    const file = path.join(folder, decodeURIComponent(pathname), pathname.endsWith("/") ? "index.html" : "");
    try {
      const content = await readFile(file);
      response.writeHead(200, { "Content-Type": TYPES[path.extname(file)] ?? "application/octet-stream" });
      response.end(content);
    } catch {
      response.writeHead(404).end();
    }
  });
  return new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(server)));
}

async function pagesOf(folder) {
  const files = await readdir(folder, { recursive: true });
  return files
    .filter((name) => path.basename(name) === "index.html")
    .map((name) => path.dirname(name).replaceAll(path.sep, "/"))
    .sort();
}

// Material follows what the system prefers.
async function prefer(page, scheme) {
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
}

async function shownIn(page, scheme) {
  const name = { light: "default", dark: "slate" }[scheme];
  await page.waitForSelector(`body[data-md-color-scheme=${name}]`, { timeout: 60_000 });
}

async function judge(browser, origin, shots, name, width, verdicts) {
  const found = [];
  const page = await newPage(browser, found, new RegExp(`^(data:|${origin}/)`));
  await page.setViewport({ width, height: 900 });
  await prefer(page, SCHEMES[0]);
  await page.goto(`${origin}/${name === "." ? "" : `${name}/`}`, { waitUntil: "load" });
  await page.addStyleTag({ content: "*, ::before, ::after { transition: none !important; }" });
  for (const scheme of SCHEMES) {
    await prefer(page, scheme);
    await shownIn(page, scheme);
    const shot = `${name === "." ? "index" : name.replaceAll("/", "-")}-${width}-${scheme}.png`;
    const tall = await page.evaluate(() => document.documentElement.scrollHeight);
    const clip = { x: 0, y: 0, width, height: Math.min(tall, TALLEST) };
    await page.screenshot({ path: path.join(shots, shot), clip, captureBeyondViewport: true });
    found.push(...(await faults(page, width, (impact) => SEVERE.includes(impact))));
    verdicts.say(`${name} at ${width} px, ${scheme}`, found.splice(0));
  }
  await page.close();
}

async function search(browser, origin, shots, words, wanted, verdicts) {
  const found = [];
  const page = await newPage(browser, found, new RegExp(`^(data:|${origin}/)`));
  await page.setViewport({ width: 1280, height: 900 });
  await page.goto(`${origin}/`, { waitUntil: "load" });
  await page.click(".md-search__input");
  await page.type(".md-search__input", words);
  await page.waitForSelector(".md-search-result__link", { timeout: 10_000 });
  await new Promise((resolve) => setTimeout(resolve, 500)); // the list is filled after each key
  const pages = await page.$$eval(
    ".md-search-result__item > .md-search-result__link",
    (links) => links.map((link) => new URL(link.href).pathname.slice(1)),
  );
  await page.screenshot({ path: path.join(shots, `search-${words.replace(" ", "-")}.png`) });
  const first = [...new Set(pages)].slice(0, FIRST);
  for (const name of wanted) {
    if (!first.includes(name)) found.push(`${name} is not among ${first.join(", ")}`);
  }
  await page.close();
  verdicts.say(`search for "${words}": ${first.join(", ")}`, found);
}

// Sorts and filters the catalogue by keyboard, and follows a link to a row that is filtered out.
async function useCatalogue(browser, origin, verdicts) {
  const found = [];
  const expect = (what, is, wanted) => is === wanted || found.push(`${what}: ${is}, not ${wanted}`);
  const page = await newPage(browser, found, new RegExp(`^(data:|${origin}/)`));
  await page.goto(`${origin}/catalogue/`, { waitUntil: "load" });
  const shown = () =>
    page.$$eval(".catalogue", (parts) =>
      parts.map((part) => part.querySelectorAll("tbody tr:not([hidden])").length),
    );
  const all = await page.$$eval(".catalogue tbody", (bodies) => bodies.map((b) => b.rows.length));
  expect("checkpoints", all[0] + all[1], 317);
  expect("of VTAB-1k at first", (await shown())[1], 19);
  const first = () => page.$eval(".catalogue tbody th code", (name) => name.textContent);
  await page.focus(".catalogue thead th:nth-child(5) button"); // parameters
  await page.keyboard.press("Enter");
  expect("fewest parameters", await first(), "BiT-S-R50x1");
  await page.keyboard.press("Enter");
  expect("most parameters", await first(), "BiT-M-R152x4");
  const sorted = await page.$eval(".catalogue th:nth-child(5)", (th) => th.getAttribute("aria-sort"));
  expect("aria-sort", sorted, "descending");
  await page.type(".catalogue input", "r50x1 160");
  expect("rows with r50x1 and 160", (await shown())[0], 1);
  expect("said", await page.$eval(".catalogue output", (o) => o.textContent), `1 of ${all[0]} checkpoints`);
  await page.$eval('a[href="#figures-bit-s-r152x4"]', (link) => link.click());
  await page.waitForFunction(() => document.getElementById("figures-bit-s-r152x4")?.offsetHeight > 0);
  const figures = '.catalogue tbody tr[data-model="BiT-S-R152x4"]:not([hidden])';
  expect("figures after the link", (await page.$$(figures)).length, (await shown())[2]);
  await page.setJavaScriptEnabled(false);
  await page.goto(`${origin}/catalogue/?plain`);
  expect("rows without scripts", (await shown()).join(), all.join());
  await page.close();
  verdicts.say("the catalogue, used", found);
}

const [folder, shots, ...names] = process.argv.slice(2);
const wants = (name) => !names.length || names.includes(name);
await mkdir(shots, { recursive: true });
const server = await serve(path.resolve(folder));
const origin = `http://127.0.0.1:${server.address().port}`;
const verdicts = new Verdicts();
const browser = await openBrowser();
try {
  for (const name of (await pagesOf(folder)).filter(wants)) {
    for (const width of WIDTHS) await judge(browser, origin, shots, name, width, verdicts);
  }
  for (const [words, pages] of wants("search") ? Object.entries(SEARCHES) : []) {
    await search(browser, origin, shots, words, pages, verdicts);
  }
  if (wants("catalogue")) await useCatalogue(browser, origin, verdicts);
} finally {
  await browser.close();
  server.close();
}
process.exit(verdicts.end());

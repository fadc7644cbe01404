// manifests.mjs DIRECTORY-OF-PACKAGES FILE...: reads YAML files, and checks Kubernetes manifests against the types of their API.
// Files outside a folder `kubernetes` are read and no more, as they have checkers of their own.
//
// Types and schemas come from the npm packages @kubernetes-models/…, which are generated from the APIs' own definitions. The
// schemas know patterns, bounds and required fields, but pass over fields that they don't know; the types know every field, and
// the compiler refuses others. So each manifest is checked by both. The expressions of a PrometheusRule are promtool's to check.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { pathToFileURL } from "node:url";

const [, , home, ...files] = process.argv;
const modules = join(home, "node_modules");
const load = createRequire(join(modules, "manifests.cjs"));
const { parseAllDocuments } = load("yaml");

// Fields that the APIs have and the packages lack, so that nothing checks them. Take a line out when a newer package has its field.
const UNKNOWN = {
  // The package says no more of it than its name.
  "install.istio.io/v1alpha1 IstioOperator": [["spec"]],
  // New in Envoy Gateway 1.8.
  "gateway.envoyproxy.io/v1alpha1 SecurityPolicy": [["spec", "extAuth", "statusOnError"]],
};

// Where an API group is: the last of these whose end fits; groups without a dot are Kubernetes' own.
const PACKAGES = [
  ["", "kubernetes-models"],
  ["networking.k8s.io", "kubernetes-models"],
  ["gateway.networking.k8s.io", "@kubernetes-models/gateway-api"],
  ["gateway.envoyproxy.io", "@kubernetes-models/envoy-gateway"],
  ["istio.io", "@kubernetes-models/istio"],
  ["monitoring.coreos.com", "@kubernetes-models/prometheus-operator"],
];

function moduleOf({ apiVersion, kind }) {
  const group = apiVersion.includes("/") ? apiVersion.split("/")[0] : "";
  const fits = ([end]) => (end === "" ? !group.includes(".") : group === end || group.endsWith(`.${end}`));
  const [, name] = PACKAGES.findLast(fits) ?? [];
  const path = name && join(modules, name, apiVersion, `${kind}.js`);
  return path && existsSync(path) ? path : undefined;
}

function documents(file) {
  return parseAllDocuments(readFileSync(file, "utf8")).map((document) => {
    if (document.errors.length > 0) throw new Error(document.errors.join("\n"));
    return document.toJS();
  }).filter((document) => document !== null);
}

function without(object, path) {
  const copy = structuredClone(object);
  const parent = path.slice(0, -1).reduce((at, name) => at?.[name], copy);
  if (parent) delete parent[path.at(-1)];
  return copy;
}

let failures = 0;
const fail = (message) => {
  failures += 1;
  console.error(message);
};

const work = join(home, "check");
rmSync(work, { recursive: true, force: true });
mkdirSync(work, { recursive: true });
// Some types are intersections with unions ("one of these fields"), in which the compiler does not look for unknown fields. Written
// out field by field they are not.
writeFileSync(join(work, "plain.ts"), `export type Plain<T> =
  T extends (infer U)[] ? Plain<U>[] : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
`);
const sources = new Map();
const rules = new Map();

for (const file of files) {
  let manifests = [];
  try {
    manifests = documents(file);
  } catch (error) {
    fail(`${file}: ${error.message}`);
  }
  if (!file.includes("/kubernetes/")) continue;
  for (const manifest of manifests) {
    const what = `${file}: ${manifest.kind} ${manifest.metadata?.name ?? ""}`;
    const path = typeof manifest.apiVersion === "string" ? moduleOf(manifest) : undefined;
    if (!path) {
      fail(`${what}: no schema of ${manifest.apiVersion}`);
      continue;
    }
    const known = (UNKNOWN[`${manifest.apiVersion} ${manifest.kind}`] ?? []).reduce(without, manifest);
    try {
      const model = (await import(pathToFileURL(path).href))[manifest.kind];
      new model(known).validate();
    } catch (error) {
      fail(`${what}: ${error.message}`);
    }
    const source = join(work, `${sources.size}.ts`);
    const from = JSON.stringify(path);
    const literal = JSON.stringify(known, null, 2);
    writeFileSync(source, `import type { I${manifest.kind} } from ${from};
import type { Plain } from "./plain.js";
export const manifest: Plain<I${manifest.kind}> = ${literal};
`);
    sources.set(source, what);
    if (manifest.kind === "PrometheusRule") {
      const groups = join(work, `${sources.size}.rules.json`);
      writeFileSync(groups, JSON.stringify(manifest.spec));
      rules.set(groups, what);
    }
  }
}

if (rules.size > 0) {
  const { status, stdout, stderr, error } = spawnSync("promtool", ["check", "rules", ...rules.keys()], { encoding: "utf8" });
  let text = status === 0 ? "" : error ? `promtool: ${error}` : stdout + stderr;
  for (const [source, what] of rules) text = text.replaceAll(source, what);
  if (status !== 0) fail(text);
}

if (sources.size > 0) {
  // The packages' entry points are ES modules without endings, as bundlers read them.
  const resolution = ["--module", "esnext", "--moduleResolution", "bundler"];
  const flags = ["--noEmit", "--strict", "--skipLibCheck", "--pretty", "false", ...resolution];
  const compiler = join(modules, ".bin", "tsc");
  const { status, stdout, error } = spawnSync(compiler, [...flags, ...sources.keys()], { encoding: "utf8", cwd: dirname(work) });
  if (status !== 0) {
    let text = error ? String(error) : stdout;
    for (const [source, what] of sources) text = text.replaceAll(`check/${source.split("/").at(-1)}`, what);
    fail(text);
  }
}

process.exit(failures === 0 ? 0 : 1);

// Connection strings of a stream that has both its peers, fetched when somebody wants to see them.

import { call, sessionPath } from "./api.js";
import { copyable, el, newId, say } from "./dom.js";
import { FORMATS, NOT_READY, failure } from "./words.js";

/**
 * {element, load(), clear()}: a choice of tool, and a field for each side.
 * sides: [{label, query}]; `query` is what tells the API which side, a function that gives an object.
 * isMatched: whether there is something to fetch.
 */
export function strings(name, token, stream, sides, isMatched) {
  const id = newId("format");
  const format = el("select", { id, onchange: () => isMatched() && load() });
  for (const [value, words] of Object.entries(FORMATS)) format.append(el("option", { value }, words));
  const problem = el("p", { class: "error", role: "alert" });
  const fields = sides.map(({ label }) => copyable(label, "", { rows: 4 }));
  const load = async () => {
    const wanted = format.value;
    const answers = await Promise.all(
      sides.map(({ query }) => {
        const asked = new URLSearchParams({ stream, format: wanted, ...query() });
        return call("GET", `${sessionPath(name)}/connect?${asked}`, { token });
      }),
    );
    if (wanted !== format.value) return;
    const failed = answers.find((one) => !one.ok);
    say(problem, failed ? failure(failed) : "");
    answers.forEach((one, number) => fields[number].set(one.ok ? one.data.value : ""));
  };
  const clear = () => {
    say(problem, NOT_READY);
    for (const field of fields) field.set("");
  };
  const chooser = el("p", { class: "field" }, el("label", { for: id }, "Tool"), format);
  return { element: el("div", { class: "strings" }, chooser, problem, ...fields.map((one) => one.element)), load, clear };
}

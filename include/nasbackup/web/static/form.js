// A DAG's form, drawn from the params that Airflow knows of it, filled in, and sent to Airflow with the reader's login.
"use strict";
(() => {
  const form = document.getElementById("trigger");
  if (!form) return;
  const { airflow, dag, back } = form.dataset;
  const given = JSON.parse(form.dataset.conf);
  const readers = new Map(); // name of a param -> what its field says now

  const element = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) if (value !== undefined) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };

  const typesOf = (schema) => [].concat(schema.type ?? (schema.enum ? "string" : []));

  const field = (name, { schema, value, description }) => {
    const id = `param-${name}`;
    const types = typesOf(schema);
    const optional = types.includes("null") || types.includes("array") || types.includes("boolean");
    const start = name in given ? given[name] : value;
    const help = description ?? schema.description;
    const described = help ? `${id}-help` : undefined;
    let input;
    if (schema.enum) {
      input = element("select", { id, "aria-describedby": described });
      if (!schema.enum.includes(start)) {
        // Taken out of fleet.yaml, say. Nothing takes its place in silence: the reader has to choose.
        const why = start == null ? "(choose)" : `${start} is not in fleet.yaml: choose`;
        input.append(element("option", { value: "" }, why));
        input.required = true;
      }
      schema.enum.forEach((choice, index) => {
        const label = choice === null ? "(empty)" : schema.values_display?.[choice] ?? String(choice);
        const option = element("option", { value: index }, label);
        option.selected = choice === start;
        input.append(option);
      });
      readers.set(name, () => (input.value === "" ? start : schema.enum[Number(input.value)]));
    } else if (types.includes("boolean")) {
      input = element("input", { id, type: "checkbox", "aria-describedby": described });
      input.checked = Boolean(start);
      readers.set(name, () => input.checked);
    } else if (types.includes("array")) {
      input = element("textarea", { id, rows: 3, "aria-describedby": described });
      input.value = (start ?? []).join("\n");
      readers.set(name, () => input.value.split("\n").map((line) => line.trim()).filter(Boolean));
    } else if (types.includes("object")) {
      input = element("textarea", { id, rows: 4, spellcheck: "false", "aria-describedby": described });
      input.value = start == null ? "" : JSON.stringify(start, null, 2);
      readers.set(name, () => (input.value.trim() ? JSON.parse(input.value) : null));
    } else if (schema.format === "date-time") {
      input = element("input", { id, type: "datetime-local", "aria-describedby": described });
      input.value = (start ?? "").slice(0, 16);
      readers.set(name, () => (input.value ? `${input.value.slice(0, 16)}:00Z` : null));
    } else {
      const whole = types.includes("integer") || types.includes("number");
      input = element("input", { id, type: whole ? "number" : "text", step: types.includes("integer") ? 1 : whole ? "any" : undefined, "aria-describedby": described, autocomplete: "off", spellcheck: "false" });
      input.value = start ?? "";
      if (!optional) input.required = (schema.minLength ?? 1) > 0;
      readers.set(name, () => (input.value === "" && types.includes("null") ? null : whole ? Number(input.value) : input.value));
    }
    const title = schema.title ?? name;
    const heading = input.type === "checkbox" ? element("label", { class: "check" }, input, title) : element("label", { for: id }, title);
    if (input.required) heading.append(" ", element("span", { class: "required", "aria-hidden": "true" }, "*"));
    const made = element("div", { class: "field" }, heading);
    if (input.type !== "checkbox") made.append(input);
    const utc = input.type === "datetime-local" ? " (UTC)" : "";
    if (help) made.append(element("p", { id: described }, help.replaceAll("`", "") + utc));
    return made;
  };

  const say = (box, ...said) => {
    box.querySelector("p").replaceChildren(...said);
    box.hidden = false;
  };
  const refuse = (sentence, head = "Not started. ") => say(document.getElementById("refused"), element("strong", {}, head), sentence);

  const ask = async (path, request = {}) => {
    const answer = await fetch(`${airflow}/api/v2${path}`, { ...request, headers: { Accept: "application/json", "Content-Type": "application/json" } });
    const body = await answer.json().catch(() => ({}));
    if (answer.ok) return body;
    const detail = typeof body.detail === "string" ? body.detail : JSON.stringify(body.detail ?? answer.statusText);
    const why = { 401: "Your login has ended: load the page anew.", 403: `You may not do this (${detail}).`, 404: `Airflow has no DAG ${dag}: is it parsed without errors?` };
    throw new Error(why[answer.status] ?? detail);
  };

  const load = async () => {
    const details = await ask(`/dags/${encodeURIComponent(dag)}/details`);
    const fields = form.querySelector(".fields");
    const sections = new Map();
    for (const [name, param] of Object.entries(details.params ?? {})) {
      const described = { schema: param.schema ?? {}, value: param.value, description: param.description };
      const section = described.schema.section;
      const made = field(name, described);
      if (!section) fields.append(made);
      else {
        if (!sections.has(section)) sections.set(section, element("details", {}, element("summary", {}, section)));
        sections.get(section).append(made);
      }
    }
    for (const section of sections.values()) section.open = section.querySelector('option[value=""]') !== null;
    fields.append(...sections.values());
    if (details.is_paused) refuse("A run would wait until somebody unpauses it.", `${dag} is paused. `);
    form.querySelector(".loading").hidden = true;
    fields.hidden = false;
    form.querySelector(".actions").hidden = false;
  };

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector("button");
    document.getElementById("refused").hidden = true;
    button.disabled = true;
    try {
      const conf = Object.fromEntries([...readers].map(([name, read]) => [name, read()]));
      const run = await ask(`/dags/${encodeURIComponent(dag)}/dagRuns`, { method: "POST", body: JSON.stringify({ conf, logical_date: null }) });
      const link = element("a", { href: `${airflow}/dags/${encodeURIComponent(dag)}/runs/${encodeURIComponent(run.dag_run_id)}`, target: "_top" }, "Look at the run in Airflow");
      const home = element("a", { href: back }, "back to the VM");
      say(document.getElementById("started"), element("strong", {}, `Run ${run.dag_run_id} is on its way. `), link, ", or go ", home, ".");
      form.hidden = true;
      document.getElementById("started").setAttribute("tabindex", "-1");
      document.getElementById("started").focus();
    } catch (error) {
      refuse(error.message);
      button.disabled = false;
    }
  });

  load().catch((error) => {
    form.querySelector(".loading").hidden = true;
    refuse(error.message);
  });
})();

// Reads {"tables": {name: "(column: type, ...)"}, "queries": [...]} from stdin. Writes for each query its errors, and the columns of
// its result with their types.
"use strict";

require("@kusto/language-service-next/bridge.min.js");
require("@kusto/language-service-next/Kusto.Language.Bridge.min.js");

const { GlobalState, KustoCode, Symbols } = Kusto.Language;

function listed(collection) {
  return collection ? Array.from({ length: collection.Count }, (_, index) => collection.getItem(index)) : [];
}

function analysed(query, globals) {
  const code = KustoCode.ParseAndAnalyze(query, globals);
  const faults = listed(code.GetDiagnostics()).map((one) => `${one.Message} At: ${query.substr(one.Start, one.Length)}`);
  const columns = listed(code.ResultType && code.ResultType.Columns).map((one) => [one.Name, one.Type.Name]);
  return { faults, columns: Object.fromEntries(columns) };
}

const input = JSON.parse(require("fs").readFileSync(0, "utf8"));
const tables = Object.entries(input.tables).map(([name, columns]) => Symbols.TableSymbol.From(columns).WithName(name));
// The constructors of a library translated from C# are numbered: this one takes name, other name, tables, whether there may be more.
const globals = GlobalState.Default.WithDatabase(new Symbols.DatabaseSymbol.$ctor3("app", null, tables, false));
process.stdout.write(JSON.stringify(input.queries.map((query) => analysed(query, globals))));

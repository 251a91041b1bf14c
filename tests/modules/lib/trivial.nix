# Functions about functions, numbers and truth.
rec {
  inherit (builtins)
    add
    addErrorContext
    bitAnd
    bitOr
    deepSeq
    div
    fromJSON
    functionArgs
    hasContext
    isAttrs
    isBool
    isFloat
    isInt
    isList
    isPath
    isString
    lessThan
    mul
    readFile
    seq
    sub
    toJSON
    trace
    tryEval
    typeOf
    ;

  id = x: x;
  const = x: _: x;
  flip = f: a: b: f b a;
  pipe = builtins.foldl' (x: f: f x);
  min = a: b: if a < b then a else b;
  max = a: b: if a > b then a else b;
  mod = a: b: a - b * (a / b);
  compare = a: b: if a < b then -1 else if a > b then 1 else 0;

  and = a: b: a && b;
  "or" = a: b: a || b;
  boolToString = b: if b then "true" else "false";
  boolToYesNo = b: if b then "yes" else "no";

  isFunction = f: builtins.isFunction f || (f ? __functor && isFunction (f.__functor f));
  toFunction = v: if isFunction v then v else _: v;
  setFunctionArgs = f: args: {
    __functor = _: f;
    __functionArgs = args;
  };
  mergeAttrs = a: b: a // b;
  mapNullable = f: a: if a == null then null else f a;
  defaultTo = fallback: a: if a == null then fallback else a;

  fix = f: let x = f x; in x;
  extends = overlay: f: final: let prev = f final; in prev // overlay final prev;
  composeExtensions = f: g: final: prev:
    let
      first = f final prev;
    in
    first // g final (prev // first);

  importJSON = path: builtins.fromJSON (builtins.readFile path);
  importTOML = path: builtins.fromTOML (builtins.readFile path);

  warn = message: builtins.trace "evaluation warning: ${message}";
  warnIf = condition: message: if condition then warn message else id;
  warnIfNot = condition: warnIf (!condition);
  throwIf = condition: message: if condition then throw message else id;
  throwIfNot = condition: throwIf (!condition);
  assertMsg = condition: message: condition || throw message;

  version = "24.11-fixture";
  inPureEvalMode = !(builtins ? currentSystem);
}

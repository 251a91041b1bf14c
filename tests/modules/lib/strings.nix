# Strings, and what shells and systemd make of them.
{ lib }:
let
  inherit (lib.lists) concatMap elem genList imap1;
  lower = "abcdefghijklmnopqrstuvwxyz";
  upper = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
in
rec {
  inherit (builtins)
    baseNameOf
    compareVersions
    concatStringsSep
    fromJSON
    hashString
    isString
    match
    readFile
    replaceStrings
    split
    storeDir
    stringLength
    substring
    toJSON
    toString
    unsafeDiscardStringContext
    ;

  concatStrings = concatStringsSep "";
  concatMapStrings = f: list: concatStrings (map f list);
  concatMapStringsSep = separator: f: list: concatStringsSep separator (map f list);
  concatImapStringsSep = separator: f: list: concatStringsSep separator (imap1 f list);
  concatMapAttrsStringSep = separator: f: set: concatStringsSep separator (lib.attrsets.mapAttrsToList f set);
  concatLines = concatMapStrings (line: line + "\n");
  optionalString = condition: text: if condition then text else "";
  join = concatStringsSep;
  replicate = n: text: concatStrings (lib.lists.replicate n text);

  stringToCharacters = text: genList (n: substring n 1 text) (stringLength text);
  stringAsChars = f: text: concatMapStrings f (stringToCharacters text);
  intersperse = separator: list:
    if list == [ ] then [ ] else builtins.tail (concatMap (x: [ separator x ]) list);
  # The pieces keep the context of the whole, as a piece of a store path must.
  splitString = separator: text:
    map (piece: substring 0 0 text + piece) (builtins.filter isString (split (escapeRegex separator) text));

  hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
  hasSuffix = suffix: text:
    let
      n = stringLength text - stringLength suffix;
    in
    n >= 0 && substring n (-1) text == suffix;
  hasInfix = infix: text: match ".*${escapeRegex infix}.*" text != null;
  removePrefix = prefix: text: if hasPrefix prefix text then substring (stringLength prefix) (-1) text else text;
  removeSuffix = suffix: text:
    if hasSuffix suffix text then substring 0 (stringLength text - stringLength suffix) text else text;

  toLower = replaceStrings (stringToCharacters upper) (stringToCharacters lower);
  toUpper = replaceStrings (stringToCharacters lower) (stringToCharacters upper);
  trim = text: trimStart (trimEnd text);
  trimStart = text: builtins.elemAt (match "[ \t\r\n]*(.*)" text) 0;
  trimEnd = text:
    let
      found = match "(.*[^ \t\r\n])[ \t\r\n]*" text;
    in
    if found == null then "" else builtins.head found;
  fixedWidthString = width: filler: text:
    if stringLength text >= width then text else fixedWidthString width filler (filler + text);
  fixedWidthNumber = width: n: fixedWidthString width "0" (toString n);

  escape = characters: replaceStrings characters (map (c: "\\${c}") characters);
  escapeRegex = escape (stringToCharacters "\\[{()^$?*+|.");
  escapeShellArg = arg:
    let
      text = toString arg;
    in
    if match "[[:alnum:],._+:@%/-]+" text == null then "'${replaceStrings [ "'" ] [ "'\\''" ] text}'" else text;
  escapeShellArgs = concatMapStringsSep " " escapeShellArg;
  isValidPosixName = name: match "[a-zA-Z_][a-zA-Z0-9_]*" name != null;
  toShellVar = name: value:
    if isValidPosixName name then "${name}=${escapeShellArg value}"
    else throw "toShellVar: ${name} is not a valid shell variable name";
  escapeNixString = text: escape [ "$" ] (toJSON text);
  escapeNixIdentifier = name:
    if match "[a-zA-Z_][a-zA-Z0-9_'-]*" name != null && !elem name nixKeywords then name else escapeNixString name;
  nixKeywords = [ "assert" "else" "if" "in" "inherit" "let" "or" "rec" "then" "with" ];

  makeSearchPath = directory: paths:
    concatStringsSep ":" (map (path: "${path}/${directory}") (builtins.filter (path: path != null) paths));
  makeSearchPathOutput = output: directory: packages:
    makeSearchPath directory (map (lib.attrsets.getOutput output) packages);
  makeBinPath = makeSearchPathOutput "bin" "bin";
  makeLibraryPath = makeSearchPathOutput "lib" "lib";

  isStringLike = x: isString x || builtins.isPath x || x ? outPath || x ? __toString;
  isConvertibleWithToString = x:
    isStringLike x || x == null || elem (builtins.typeOf x) [ "int" "float" "bool" ]
    || (builtins.isList x && builtins.all isConvertibleWithToString x);
  isStorePath = x:
    isStringLike x
    && (let path = toString x; in substring 0 1 path == "/" && dirOf path == storeDir);
  floatToString = toString;
  toInt = text:
    let
      n = builtins.fromJSON text;
    in
    if match "[[:space:]]*-?[0-9]+[[:space:]]*" text != null && builtins.isInt n then n
    else throw "toInt: Could not convert ${escapeNixString text} to int.";
  toSentenceCase = text: toUpper (substring 0 1 text) + toLower (substring 1 (-1) text);

  versionOlder = a: b: compareVersions b a > 0;
  versionAtLeast = a: b: !versionOlder a b;
  getName = x:
    if isString x then (builtins.parseDrvName x).name else x.pname or (builtins.parseDrvName x.name).name;
  getVersion = x:
    if isString x then (builtins.parseDrvName x).version else x.version or (builtins.parseDrvName x.name).version;
}

# Texts as systemd.service(5) and systemd.syntax(7) want them, whatever is in them.
{ lib }:
rec {
  # `%` begins a specifier in every setting that takes paths, words or commands.
  literal = builtins.replaceStrings [ "%" ] [ "%%" ];

  # One word of a command line. `$` would be a variable even inside the quotes.
  execWord =
    word:
    "\""
    + builtins.replaceStrings
      [ "\\" "\"" "%" "$" "\n" "\t" "\r" ]
      [ "\\\\" "\\\"" "%%" "$$" "\\n" "\\t" "\\r" ]
      word
    + "\"";

  execWords = lib.concatMapStringsSep " " execWord;

  # True for a path that means itself in every setting: those that take lists of paths quote in ways of their own.
  isPlainPath = path: builtins.match "/[A-Za-z0-9/_.+@-]*" path != null;

  # What StateDirectory= calls a directory: its path below /var/lib. Null for one that is elsewhere.
  stateDirectoryName =
    path:
    let
      below = builtins.match "/var/lib/([A-Za-z0-9_.+@-][A-Za-z0-9/_.+@-]*)" path;
    in
    if below == null then null else lib.removeSuffix "/" (builtins.head below);
}

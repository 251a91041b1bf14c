# `trust.json` out of the trust options, and what is wrong with them. The members are those of `evidence/trust.py`.
{ lib }:
let
  inherit (lib) concatMap optional;

  present = lib.filterAttrs (_: value: value != null && value != [ ]);

  isTime = text: builtins.match "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})" text != null;
  # 32 bytes are 44 characters of base64, 64 bytes are 88.
  base64Form = {
    ed25519 = "[A-Za-z0-9+/]{43}=";
    ecdsa-p256 = "[A-Za-z0-9+/]{86}==";
  };

  keyProblems =
    where: key:
    optional (key != null && builtins.match base64Form.${key.algorithm} key.public == null)
      "${where}.public is not the base64 of an ${key.algorithm} key: it must be ${
        if key.algorithm == "ed25519" then "32 bytes, 44 characters" else "64 bytes (X and Y), 88 characters"
      } long.";

  slotProblems =
    where: keys:
    concatMap (place: keyProblems "${where}.${place}" keys.${place}) [ "current" "previous" "successor" ]
    ++ optional (keys.current == null && keys.previous != null)
      "${where}.previous is set without ${where}.current: set the key that signs now as current."
    ++ optional ((keys.successor == null) != (keys.retireAt == null))
      "${where}.successor and ${where}.retireAt come together: a successor counts until retireAt, and without that never."
    ++ concatMap
      (time: optional (keys.${time} != null && !isTime keys.${time})
        "${where}.${time} is \"${keys.${time}}\", which is no RFC 3339 time: write it like 2026-06-01T10:00:00Z.")
      [ "rejectBefore" "retireAt" ];
in
{
  # `trust` as the text of the file.
  text =
    trust:
    builtins.toJSON (
      present {
        schemaVersion = 1;
        ciReleaseKey = present trust.ciReleaseKey;
        orgRootKey = if trust.orgRootKey == null then null else present trust.orgRootKey;
        inherit (trust) cacheKeys rootCaPem issuanceCaPems;
      }
    );

  # `where` is the option's name, for the sentences.
  problems =
    where: trust:
    slotProblems "${where}.ciReleaseKey" trust.ciReleaseKey
    ++ optional (lib.all (place: trust.ciReleaseKey.${place} == null) [ "current" "previous" "successor" ])
      "${where}.ciReleaseKey has no key: nothing could ever be deployed. Set ${where}.ciReleaseKey.current."
    ++ lib.optionals (trust.orgRootKey != null) (
      slotProblems "${where}.orgRootKey" trust.orgRootKey
      ++ concatMap
        (place: optional (trust.orgRootKey.${place} != null && trust.orgRootKey.${place}.algorithm != "ed25519")
          "${where}.orgRootKey.${place} is an ${trust.orgRootKey.${place}.algorithm} key: bootstrap tokens are signed with ed25519 only.")
        [ "current" "previous" "successor" ]
    );
}

# The file that `nixfleet builder` reads, from `services.nixfleet-builder`. A string, a number, a truth value and a list of
# strings are written in JSON as TOML has them.
{ lib }:
let
  line = key: value: lib.optional (value != null) "${key} = ${builtins.toJSON value}";
  table = path: lines: lib.concatStringsSep "\n" (lib.optional (path != "") "[${path}]" ++ lines) + "\n";
  file = path: if path == null then null else "${path}";

  repository = name: one: table "repositories.${builtins.toJSON name}" (
    line "url" one.url
    ++ line "branch" one.branch
    ++ line "flake-path" one.flakePath
    ++ line "hosts" one.hosts
    ++ line "prebuild" one.prebuild
  );
in
{
  text = stateDir: cfg: lib.concatStringsSep "\n" ([
    (table "" (
      line "state-dir" stateDir
      ++ line "name" cfg.name
      ++ line "role" cfg.role
      ++ line "metrics-port" cfg.metricsPort
      ++ line "hosts" cfg.hosts
      ++ line "parallel" cfg.parallel
      ++ line "build-timeout" cfg.buildTimeout
      ++ line "memory-max" cfg.memoryMax
      ++ line "patience" cfg.patience
      ++ line "keep" cfg.keep
      ++ line "cache" cfg.cache
      ++ line "signing-key-file" cfg.signingKeyFile
      ++ line "prefix" cfg.prefix
      ++ line "news-prefix" cfg.newsPrefix
    ))
    (table "nats" (
      line "url" cfg.nats.url
      ++ line "nkey-file" cfg.nats.nkeyFile
      ++ line "credentials-file" cfg.nats.credentialsFile
      ++ line "token-file" cfg.nats.tokenFile
      ++ line "ca-cert" (file cfg.nats.caCert)
      ++ line "client-cert" (file cfg.nats.clientCert)
      ++ line "client-key" cfg.nats.clientKeyFile
    ))
  ] ++ lib.mapAttrsToList repository cfg.repositories);
}

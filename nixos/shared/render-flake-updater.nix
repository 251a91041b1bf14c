# The file of instances that `nixfleet update` reads, from `services.nix-flake-updater`. A string, a number, a truth
# value and a list of strings are written in JSON as TOML has them.
{ lib }:
let
  line = key: value: lib.optional (value != null && value != [ ]) "${key} = ${builtins.toJSON value}";
  table = path: lines: lib.optional (lines != [ ]) (lib.concatStringsSep "\n" ([ "[${path}]" ] ++ lines) + "\n");
  name = text: builtins.toJSON text;
  file = path: if path == null then null else "${path}";

  instance = key: one:
    table (name key) (
      line "repo-path" one.repoPath
      ++ line "flake-path" one.flakePath
      ++ line "flake-inputs" one.flakeInputs
      ++ line "build-systems" one.buildSystems
      ++ line "git-remote" one.gitRemote
      ++ line "main-branch" one.mainBranch
      ++ line "branch-prefix" one.branchPrefix
      ++ line "auto-merge" one.autoMerge
      ++ line "push" one.push
      ++ line "dry-run" one.dryRun
      ++ line "jobs" one.jobs
      ++ line "build-timeout" one.buildTimeout
      ++ line "close-stale-after" one.closeStaleAfter
      ++ line "metrics-file" one.metricsFile
      ++ line "pushgateway" one.pushgateway
      ++ line "builder" one.builder
    )
    ++ lib.optionals (one.nats.url != null) (table "${name key}.nats" (
      line "url" one.nats.url
      ++ line "nkey-file" one.nats.nkeyFile
      ++ line "credentials-file" one.nats.credentialsFile
      ++ line "token-file" one.nats.tokenFile
      ++ line "ca-cert" (file one.nats.caCert)
      ++ line "client-cert" (file one.nats.clientCert)
      ++ line "client-key" one.nats.clientKeyFile
      ++ line "prefix" one.nats.prefix
      ++ line "repository" one.nats.repository
    ))
    ++ table "${name key}.auto-fix" (
      line "enable" one.autoFix.enable
      ++ line "command" one.autoFix.command
      ++ line "extra-args" one.autoFix.extraArgs
      ++ line "max-attempts" one.autoFix.maxAttempts
      ++ line "env-file" one.autoFix.envFile
      ++ line "paths" one.autoFix.fixPaths
      ++ line "timeout" one.autoFix.timeout
    )
    ++ table "${name key}.forge" (
      line "kind" one.forge.kind
      ++ line "url" one.forge.url
      ++ line "repository" one.forge.repository
      ++ line "token-file" one.forge.tokenFile
    )
    ++ table "${name key}.release" (
      line "enable" one.release.enable
      ++ line "args" one.release.args
      ++ line "timeout" one.release.timeout
    )
    ++ table "${name key}.notify" (
      line "ntfy-server" one.ntfyServer
      ++ line "ntfy-topic" one.ntfyTopic
      ++ line "ntfy-token-file" one.ntfyTokenFile
      ++ line "urls-file" one.appriseUrlsFile
      ++ line "inbox-org" one.inboxOrg
    );
in
{
  text = instances: lib.concatStringsSep "\n" (lib.concatLists (lib.mapAttrsToList instance instances));
}

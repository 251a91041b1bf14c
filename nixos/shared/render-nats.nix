# What the options of `nats-options.nix` become: flags, credentials, and sentences about what cannot work. Pure.
{ lib }:
let
  inherit (lib) concatMap filterAttrs hasPrefix mapAttrsToList optional;

  secrets = nats: filterAttrs (_: path: path != null) {
    nats-nkey-file = nats.nkeyFile;
    nats-credentials-file = nats.credentialsFile;
    nats-token-file = nats.tokenFile;
  };
in
{
  # By the names of their flags.
  inherit secrets;

  # One word each, without the secrets', whose place the service manager decides.
  flags =
    nats:
    optional (nats.url != null) "--nats-url=${nats.url}"
    ++ optional (nats.caCert != null) "--nats-ca-cert=${"${nats.caCert}"}"
    ++ optional (nats.newsPrefix != null) "--news-prefix=${nats.newsPrefix}";

  secretFlags = nats: mapAttrsToList (name: path: "--${name}=${path}") (secrets nats);

  problems =
    option: nats:
    let
      given = lib.filter (name: nats.${name} != null) [ "nkeyFile" "credentialsFile" "tokenFile" ];
      unused = given ++ lib.filter (name: nats.${name} != null) [ "caCert" "newsPrefix" ];
    in
    concatMap (name: optional (nats.url == null) "${option}.nats.${name} is set without ${option}.nats.url: set that, or remove the line.") unused
    ++ optional (builtins.length given > 1)
      "${option}.nats.${lib.concatStringsSep " and ${option}.nats." given} are set: one is enough."
    ++ optional (nats.url != null && builtins.match "(tls|nats)://[^/ ?#@]+/?" nats.url == null)
      "${option}.nats.url is \"${nats.url}\": it must be tls:// or nats:// with a host, and a port if need be, and nothing more."
    ++ optional (nats.caCert != null && nats.url != null && hasPrefix "nats:" nats.url)
      "${option}.nats.caCert is set, but ${option}.nats.url is ${nats.url}, which has no TLS: write tls://."
    ++ optional (nats.newsPrefix != null && builtins.match "[A-Za-z0-9_-]+([.][A-Za-z0-9_-]+)*" nats.newsPrefix == null)
      "${option}.nats.newsPrefix is \"${nats.newsPrefix}\": it must be words of letters, digits, dashes and underscores with dots between."
    ++ concatMap
      (name:
        optional (!hasPrefix "/" nats.${name}) "${option}.nats.${name} is \"${nats.${name}}\": it must be an absolute path."
        ++ optional (hasPrefix builtins.storeDir nats.${name})
          "${option}.nats.${name} is in the Nix store, which everybody on the host can read: keep the secret outside of it and name that place.")
      given;
}

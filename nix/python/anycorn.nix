# The control plane's HTTP server, where nixpkgs does not have it.
{
  lib,
  buildPythonPackage,
  fetchPypi,
  uv-build,
  anyio,
  h11,
  h2,
  hpack,
  priority,
  rich-click,
  sniffio,
  wsproto,
}:
buildPythonPackage rec {
  pname = "anycorn";
  version = "0.20.1";
  pyproject = true;

  src = fetchPypi {
    inherit pname version;
    hash = "sha256-qLt0d9xvDd8DDFXbHkWP3HOn4giST6fbu3lfzXchiQE=";
  };

  build-system = [ uv-build ];
  dependencies = [
    anyio
    h11
    h2
    hpack
    priority
    rich-click
    sniffio
    wsproto
  ];

  # Its tests open ports and want an HTTP/3 stack.
  doCheck = false;
  pythonImportsCheck = [ "anycorn" ];

  meta = {
    description = "ASGI server on AnyIO, a fork of Hypercorn";
    homepage = "https://github.com/davidbrochart/anycorn";
    license = lib.licenses.mit;
  };
}

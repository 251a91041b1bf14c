# JSON Canonicalization Scheme (RFC 8785), where nixpkgs does not have it.
{
  lib,
  buildPythonPackage,
  fetchPypi,
  poetry-core,
}:
buildPythonPackage rec {
  pname = "jcs";
  version = "0.2.1";
  pyproject = true;

  src = fetchPypi {
    inherit pname version;
    hash = "sha256-nyA2Cy87CkENZUk7RI+WMG2A43+0YoPz9KpdssfBRys=";
  };

  build-system = [ poetry-core ];

  # The source archive has no tests; the vectors of RFC 8785 are among those of nixfleet-agent.
  doCheck = false;
  pythonImportsCheck = [ "jcs" ];

  meta = {
    description = "JSON Canonicalization Scheme, RFC 8785";
    homepage = "https://github.com/titusz/jcs";
    license = lib.licenses.asl20;
  };
}

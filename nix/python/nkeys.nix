# Keys of NATS: ed25519 in a base32 of their own. Where nixpkgs does not have it.
{
  lib,
  buildPythonPackage,
  fetchPypi,
  pynacl,
  setuptools,
}:
buildPythonPackage rec {
  pname = "nkeys";
  version = "0.2.1";
  pyproject = true;

  src = fetchPypi {
    inherit pname version;
    hash = "sha256-OiAdzSA9i7BboohNRBsskpGLKlN6ENMk5zc4iH3enaM=";
  };

  build-system = [ setuptools ];
  dependencies = [ pynacl ];

  # The source archive has no tests.
  doCheck = false;
  pythonImportsCheck = [ "nkeys" ];

  meta = {
    description = "NATS keys";
    homepage = "https://github.com/nats-io/nkeys.py";
    license = lib.licenses.asl20;
  };
}

# What packages say about themselves.
{ lib }:
rec {
  getExe' = package: name: "${lib.getBin package}/bin/${name}";
  getExe = package: getExe' package (package.meta.mainProgram or (lib.getName package));
  addMetaAttrs = new: package: package // { meta = (package.meta or { }) // new; };
  lowPrio = addMetaAttrs { priority = 10; };
  hiPrio = addMetaAttrs { priority = -10; };
}

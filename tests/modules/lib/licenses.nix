# Only what our package names.
{
  mit = {
    spdxId = "MIT";
    fullName = "MIT License";
    free = true;
  };
}

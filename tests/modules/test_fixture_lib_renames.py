"""Renamed, aliased and removed options, and what documentation is made of, are in our lib as they are in nixpkgs'."""

from typing import Final

import pytest

from tests.modules.evaluation import evaluate, needs_nix
from tests.modules.lib_questions import merged, option, refusal

pytestmark = [needs_nix, pytest.mark.nix]

WARNINGS: Final = "options.warnings = lib.mkOption { type = lib.types.listOf lib.types.str; default = [ ]; };"
ASSERTIONS: Final = (
    "options.assertions = lib.mkOption { type = lib.types.listOf lib.types.unspecified; default = [ ]; };"
)
RENAMED: Final = '{ imports = [ (lib.mkRenamedOptionModule [ "old" "name" ] [ "x" ]) ]; }'


def test_a_renamed_option_forwards_its_definition_and_warns() -> None:
    found = merged(f"{{ {WARNINGS} }}", option("int"), RENAMED, '{ _file = "user.nix"; old.name = 5; }')
    assert found["x"] == 5
    assert found["warnings"] == ["The option `old.name' defined in `user.nix' has been renamed to `x'."]


def test_a_renamed_option_that_nobody_sets_says_nothing() -> None:
    assert merged(f"{{ {WARNINGS} }}", option("int", "default = 1;"), RENAMED, "{ }")["warnings"] == []


def test_the_strength_of_a_definition_survives_the_renaming() -> None:
    modules = [f"{{ {WARNINGS} }}", option("int", "default = 1;"), RENAMED, "{ old.name = lib.mkForce 5; x = 6; }"]
    assert merged(*modules)["x"] == 5


def test_the_old_name_and_the_new_one_with_two_values_conflict() -> None:
    assert "conflicting definition values" in refusal(
        f"{{ {WARNINGS} }}", option("int"), RENAMED, "{ old.name = 5; x = 6; }"
    )


def test_an_alias_forwards_without_a_word() -> None:
    alias = '{ imports = [ (lib.mkAliasOptionModule [ "old" ] [ "x" ]) ]; }'
    assert merged(f"{{ {WARNINGS} }}", option("int"), alias, "{ old = 5; }") == {"x": 5, "old": 5, "warnings": []}


def test_a_removed_option_fails_an_assertion_that_says_what_to_do() -> None:
    removed = '{ imports = [ (lib.mkRemovedOptionModule [ "gone" ] "Use x.") ]; }'
    expression = f"""(lib.evalModules {{ modules = [
      {{ {ASSERTIONS} }} ({removed}) {{ _file = "user.nix"; gone = 1; }}
    ]; }}).config.assertions"""
    (only,) = evaluate(expression)
    assert only["assertion"] is False
    assert "The option definition `gone' in `user.nix' no longer has any effect" in only["message"]
    assert "Use x." in only["message"]


def test_documentation_has_an_entry_for_every_option_and_for_those_within() -> None:
    modules = [
        option('attrsOf (submodule { options.y = lib.mkOption { type = int; default = 1; description = "Y."; }; })'),
        option("str", 'default = "q"; example = lib.literalExpression "a + b"; internal = true;', name="z"),
    ]
    expression = f"""builtins.filter (one: builtins.head one.loc != "_module") (lib.optionAttrSetToDocList
      (lib.evalModules {{ modules = [ {" ".join(f"({module})" for module in modules)} ]; }}).options)"""
    found = {one["name"]: one for one in evaluate(expression)}
    assert found["x"]["type"] == "attribute set of (submodule)"
    assert found["x.<name>.y"]["default"]["text"] == "1"
    assert found["x.<name>.y"]["description"] == "Y."
    assert found["z"]["internal"]
    assert found["z"]["example"]["text"] == "a + b"
    assert found["z"]["default"]["text"] == '"q"'


def test_options_for_switches_and_packages_say_the_usual_words() -> None:
    pkgs = '{ hello = { type = "derivation"; name = "hello-1"; outPath = "/nix/store/hello"; }; }'
    expression = f"""let options = {{
      on = lib.mkEnableOption "the thing";
      package = lib.mkPackageOption {pkgs} "hello" {{ }};
    }}; in {{
      on = options.on.description; off = options.on.default;
      text = options.package.defaultText.text; what = options.package.description; type = options.package.type.name;
    }}"""
    assert evaluate(expression) == {
        "on": "Whether to enable the thing.",
        "off": False,
        "text": "pkgs.hello",
        "what": "The hello package to use.",
        "type": "package",
    }

"""The lib that the modules are evaluated with does what nixpkgs' does: definitions merge, types refuse.

With NIXPKGS_LIB these tests hold nixpkgs' own lib to the same sentences.
"""

from typing import Any

import pytest

from tests.modules.evaluation import evaluate, needs_nix
from tests.modules.lib_questions import definition, merged, option, refusal

pytestmark = [needs_nix, pytest.mark.nix]


def x(type_: str, *values: str) -> Any:
    """The value of an option of this type with these definitions, each from a file of its own."""
    modules = [definition(value, file=f"{number}.nix") for number, value in enumerate(values)]
    return merged(option(type_), *modules)["x"]


@pytest.mark.parametrize(
    ("type_", "values", "result"),
    [
        ("bool", ["true", "true"], True),
        ("int", ["lib.mkDefault 1", "2"], 2),
        ("int", ["lib.mkForce 3", "2", "lib.mkDefault 1"], 3),
        ("int", ["lib.mkOverride 10 4", "lib.mkForce 3"], 4),
        ("int", ["lib.mkIf false 1", "lib.mkIf true 2"], 2),
        ("str", ['"a"', '"a"'], "a"),
        ("singleLineStr", ['"a\\n"'], "a"),
        ("lines", ['lib.mkAfter "b"', '"a"'], "a\nb"),
        ('separatedString ":"', ['lib.mkBefore "a"', '"b"'], "a:b"),
        ("listOf int", ["[ 1 ]", "lib.mkBefore [ 0 ]", "lib.mkAfter [ 2 ]"], [0, 1, 2]),
        ("listOf int", ["lib.mkMerge [ [ 1 ] (lib.mkIf false [ 9 ]) [ 2 ] ]"], [1, 2]),
        ("listOf int", ["[ 1 (lib.mkIf false 2) 3 ]"], [1, 3]),
        ("attrsOf int", ["{ a = 1; }", "{ b = 2; a = lib.mkDefault 5; }"], {"a": 1, "b": 2}),
        ("attrsOf int", ["{ a = lib.mkIf false 1; b = 2; }"], {"b": 2}),
        ("attrs", ["{ a = 1; }"], {"a": 1}),
        ("anything", ["{ a.b = 1; }", "{ a.c = [ 1 ]; }"], {"a": {"b": 1, "c": [1]}}),
        ("nullOr int", ["null", "null"], None),
        ("nullOr (listOf int)", ["[ 1 ]", "lib.mkAfter [ 2 ]"], [1, 2]),
        ("either int str", ['"a"'], "a"),
        ("oneOf [ int bool (listOf str) ]", ['[ "a" ]', 'lib.mkAfter [ "b" ]'], ["a", "b"]),
        ("coercedTo int toString str", ["5"], "5"),
        ("port", ["65535"], 65535),
        ("float", ["0.5"], 0.5),
        ("number", ["2"], 2),
        ("path", ['"/etc"'], "/etc"),
        ('enum [ "a" "b" ]', ['"b"'], "b"),
        ('strMatching "[a-z]+"', ['"abc"'], "abc"),
        ("addCheck int (n: n < 5)", ["4"], 4),
        ('unique { message = ""; } int', ["4"], 4),
    ],
)
def test_definitions_merge_into(type_: str, values: list[str], result: Any) -> None:
    assert x(type_, *values) == result


@pytest.mark.parametrize(
    ("type_", "value", "described"),
    [
        ("bool", '"yes"', "boolean"),
        ("int", "1.5", "signed integer"),
        ("float", "1", "floating point number"),
        ("number", "true", "signed integer or floating point number"),
        ("str", "1", "string"),
        ("nonEmptyStr", '" "', "non-empty string"),
        ("singleLineStr", '"a\\nb"', "(optionally newline-terminated) single-line string"),
        ("lines", "1", 'strings concatenated with "\\n"'),
        ("path", '"relative"', "path"),
        ("package", '"/etc/hosts"', "package"),
        ("port", "65536", "16 bit unsigned integer; between 0 and 65535 (both inclusive)"),
        ("ints.u16", "-1", "16 bit unsigned integer; between 0 and 65535 (both inclusive)"),
        ("ints.positive", "0", "positive integer, meaning >0"),
        ("ints.unsigned", "-1", "unsigned integer, meaning >=0"),
        ("ints.between 5 7", "8", "integer between 5 and 7 (both inclusive)"),
        ('enum [ "a" "b" ]', '"c"', 'one of "a", "b"'),
        ("nullOr int", '"c"', "null or signed integer"),
        ("listOf int", '"c"', "list of signed integer"),
        ("nonEmptyListOf str", "[ ]", "non-empty (list of string)"),
        ("attrsOf (listOf str)", "[ ]", "attribute set of list of string"),
        ("lazyAttrsOf str", "1", "lazy attribute set of string"),
        ("attrs", "1", "attribute set"),
        ("either int (listOf int)", '"c"', "signed integer or list of signed integer"),
        ("oneOf [ bool (listOf int) str ]", "1", "boolean or list of signed integer or string"),
        ("either ints.positive str", "0", "positive integer, meaning >0, or string"),
        ('strMatching "[a-z]+"', '"A"', "string matching the pattern [a-z]+"),
        ("submodule { }", "1", "submodule"),
        ("coercedTo int toString str", "true", "string or signed integer convertible to it"),
    ],
)
def test_a_definition_of_the_wrong_type_names_option_type_file_and_value(
    type_: str, value: str, described: str
) -> None:
    message = refusal(option(type_), definition(value))
    assert f"A definition for option `x' is not of type `{described}'." in message
    assert "- In `one.nix':" in message


def test_a_wrong_value_deep_inside_is_named_by_its_place() -> None:
    message = refusal(
        option("attrsOf (submodule { options.port = lib.mkOption { type = port; }; })"),
        definition("{ web.port = 0 - 1; }"),
    )
    assert "A definition for option `x.web.port' is not of type" in message
    assert '`x."[definition 1-entry 2]"\'' in refusal(option("listOf int"), definition('[ 1 "b" ]'))


@pytest.mark.parametrize("type_", ["int", "nullOr int", "either int str", "anything"])
def test_conflicting_definitions_name_the_option_and_both_files(type_: str) -> None:
    message = refusal(option(type_), definition("1"), definition("2", file="two.nix"))
    assert "The option `x' has conflicting definition values:" in message
    assert {"- In `one.nix': 1", "- In `two.nix': 2"} <= set(message.splitlines())
    assert "lib.mkForce" in message


def test_null_and_a_value_do_not_merge() -> None:
    message = refusal(option("nullOr int"), definition("1"), definition("null", file="two.nix"))
    assert "is defined both null and not null" in message
    assert "two.nix" in message


@pytest.mark.parametrize("type_", ["raw", 'unique { message = "Only one."; } int'])
def test_a_unique_option_has_one_definition(type_: str) -> None:
    assert "is defined multiple times" in refusal(option(type_), definition("1"), definition("2"))


def test_an_undeclared_option_does_not_exist() -> None:
    message = refusal(option("int", "default = 1;"), '{ _file = "one.nix"; y.z = 5; }')
    assert message.startswith("The option `y' does not exist.")
    assert "one.nix" in message


def test_an_undeclared_option_within_a_submodule_is_named_whole() -> None:
    message = refusal(
        option("attrsOf (submodule { options.a = lib.mkOption { default = 1; }; })"), definition("{ n.b = 1; }")
    )
    assert message.startswith("The option `x.n.b' does not exist.")


def test_a_value_that_nobody_gave_is_an_error_when_it_is_used() -> None:
    message = refusal(option("int"))
    assert message.startswith("The option `x' ")
    assert "used but not defined" in message or "has no value defined" in message


def test_a_read_only_option_cannot_be_set_again() -> None:
    message = refusal(option("int", "default = 1; readOnly = true;"), definition("2"))
    assert "The option `x' is read-only, but it's set multiple times." in message


def test_an_option_is_declared_once() -> None:
    message = refusal(option("int", "default = 1;"), option("int", "default = 2;"))
    assert "The option `x' in `declaring.nix' is already declared in `declaring.nix'." in message


def test_two_declarations_of_a_submodule_add_up() -> None:
    first, second = (
        option(f"attrsOf (submodule {{ options.{name} = lib.mkOption {{ default = {value}; }}; }})")
        for name, value in (("a", 1), ("b", 2))
    )
    assert merged(first, second, definition("{ n = { }; }")) == {"x": {"n": {"a": 1, "b": 2}}}


def test_an_option_is_no_prefix_of_another() -> None:
    assert "is a prefix of options in" in refusal(option("int"), option("int", name="x.y"))


def test_apply_changes_what_readers_see() -> None:
    assert merged(option("int", "default = 1; apply = n: n + 1;")) == {"x": 2}


def test_submodules_know_their_name_and_read_their_own_options() -> None:
    submodule = """attrsOf (submodule ({ name, config, ... }: {
      options.label = lib.mkOption { default = name; };
      options.twice = lib.mkOption { default = config.label + config.label; };
    }))"""
    assert merged(option(submodule), definition('{ a = { }; b.label = "c"; }')) == {
        "x": {"a": {"label": "a", "twice": "aa"}, "b": {"label": "c", "twice": "cc"}}
    }


def test_a_freeform_submodule_takes_what_it_does_not_declare() -> None:
    submodule = """submodule {
      freeformType = lib.types.attrsOf lib.types.int;
      options.known = lib.mkOption { default = "k"; };
    }"""
    assert merged(option(submodule), definition("{ other = 5; }")) == {"x": {"known": "k", "other": 5}}
    assert "`x.other' is not of type `signed integer'" in refusal(option(submodule), definition('{ other = "o"; }'))


def test_a_module_is_a_set_a_function_or_both_with_imports() -> None:
    modules = [
        option("listOf str"),
        '{ config, lib, ... }: { imports = [ { x = [ "imported" ]; } ({ y, ... }: { x = lib.mkAfter [ y ]; }) ]; }',
        '{ _module.args.y = "argument"; x = lib.mkBefore [ "shorthand" ]; }',
    ]
    assert merged(*modules) == {"x": ["shorthand", "imported", "argument"]}


def test_lists_begin_with_the_last_module_and_imports_come_before_who_imports_them() -> None:
    assert x("listOf int", "[ 1 ]", "[ 2 ]") == [2, 1]
    importing = "{ imports = [ { x = [ 1 ]; } ]; x = [ 2 ]; }"
    assert merged(option("listOf int"), importing) == {"x": [1, 2]}


def test_special_arguments_may_choose_imports() -> None:
    expression = f"""(lib.evalModules {{
      specialArgs.which = "a";
      modules = [ ({option("str")}) ({{ which, ... }}: {{ imports = [ {{ x = which; }} ]; }}) ];
    }}).config.x"""
    assert evaluate(expression) == "a"


def test_conditions_may_depend_on_options_beside_those_they_guard() -> None:
    modules = [
        "{ options.on = lib.mkOption { default = true; }; options.value = lib.mkOption { default = 0; }; }",
        "{ config, ... }: { config = lib.mkIf config.on { value = 1; }; }",
    ]
    assert merged(*modules) == {"on": True, "value": 1}


def test_options_tell_whether_they_are_defined_where_and_how_strongly() -> None:
    expression = f"""let e = lib.evalModules {{ modules = [ ({option("int")}) ({definition("lib.mkForce 1")}) ]; }};
    in {{ inherit (e.options.x) isDefined highestPrio files loc definitions; }}"""
    assert evaluate(expression) == {
        "isDefined": True,
        "highestPrio": 50,
        "files": ["one.nix"],
        "loc": ["x"],
        "definitions": [1],
    }


def test_a_stray_attribute_beside_config_is_explained() -> None:
    assert "has an unsupported attribute `x'" in refusal(option("int"), "{ config = { }; x = 1; }")

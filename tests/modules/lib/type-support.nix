# What a type is: a test for one definition, a way to merge several, and words for people.
{ lib }:
rec {
  isType = type: x: x._type or null == type;
  setType = type: value: value // { _type = type; };
  isOptionType = isType "option-type";

  mkOptionType =
    { name
    , description ? name
    , descriptionClass ? null
    , check ? _: true
    , merge ? lib.mergeDefaultOption
    , emptyValue ? { }
    , getSubOptions ? _: { }
    , getSubModules ? null
    , substSubModules ? _: null
    , nestedTypes ? { }
    , deprecationMessage ? null
    , functor ? null
      # Which one type two declarations with these types make; null when they contradict each other.
    , typeMerge ? other: if other.name == name && nestedTypes == { } then other else null
    }: {
      _type = "option-type";
      inherit name check merge emptyValue getSubOptions getSubModules substSubModules nestedTypes typeMerge;
      inherit descriptionClass deprecationMessage functor;
      description = if description == null then name else description;
    };

  # The description of a type as part of another, in parentheses where it would be ambiguous.
  phrase = classes: type:
    if builtins.elem (type.descriptionClass or null) classes then type.description else "(${type.description})";
}

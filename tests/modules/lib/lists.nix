# Lists.
rec {
  inherit (builtins)
    all
    any
    concatLists
    concatMap
    elem
    elemAt
    filter
    foldl'
    genList
    head
    isList
    length
    map
    partition
    sort
    tail
    ;

  foldr = f: start: list:
    let
      n = length list;
      from = i: if i == n then start else f (elemAt list i) (from (i + 1));
    in
    from 0;
  fold = foldr;
  foldl = foldl';

  singleton = x: [ x ];
  toList = x: if isList x then x else [ x ];
  optional = condition: x: if condition then [ x ] else [ ];
  optionals = condition: xs: if condition then xs else [ ];
  flatten = x: if isList x then concatMap flatten x else [ x ];
  forEach = xs: f: map f xs;
  count = predicate: foldl' (n: x: if predicate x then n + 1 else n) 0;

  imap0 = f: list: genList (n: f n (elemAt list n)) (length list);
  imap1 = f: list: genList (n: f (n + 1) (elemAt list n)) (length list);
  range = first: last: if first > last then [ ] else genList (n: first + n) (last - first + 1);
  replicate = n: x: genList (_: x) n;

  take = n: list: genList (elemAt list) (if n < length list then n else length list);
  drop = n: list:
    let
      left = length list - n;
    in
    if left <= 0 then [ ] else genList (i: elemAt list (n + i)) left;
  last = list: if list == [ ] then throw "lists.last: list must not be empty!" else elemAt list (length list - 1);
  init = list: if list == [ ] then throw "lists.init: list must not be empty!" else take (length list - 1) list;
  reverseList = list: let n = length list; in genList (i: elemAt list (n - i - 1)) n;

  findFirst = predicate: default: list:
    let
      found = filter predicate list;
    in
    if found == [ ] then default else head found;
  remove = x: filter (y: y != x);
  unique = foldl' (seen: x: if elem x seen then seen else seen ++ [ x ]) [ ];
  allUnique = list: length (unique list) == length list;
  subtractLists = gone: filter (x: !elem x gone);
  intersectLists = wanted: filter (x: elem x wanted);

  zipListsWith = f: xs: ys:
    genList (n: f (elemAt xs n) (elemAt ys n)) (if length xs < length ys then length xs else length ys);
  zipLists = zipListsWith (fst: snd: { inherit fst snd; });
  sortOn = key: sort (a: b: key a < key b);
  groupBy = builtins.groupBy;
  concatImap = f: list: concatLists (imap1 f list);
}

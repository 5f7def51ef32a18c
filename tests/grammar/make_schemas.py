"""Writes schemas.json: what is promised to be understood, with texts that fit and do not, and what is
refused. Checked with the `jsonschema` package, which is none of ours: what is said to fit does.

Run as: make_schemas.py (with jsonschema) > schemas.json
"""

import json
import sys

import jsonschema

obj = lambda properties, required=None, **more: {"type": "object", "properties": properties,
                                                 "required": list(properties) if required is None else required, **more}
closed = lambda properties, required=None, **more: obj(properties, required, additionalProperties=False, **more)
STRING, INTEGER, NUMBER, BOOLEAN, NULL = ({"type": t} for t in ("string", "integer", "number", "boolean", "null"))
listed = lambda items, **more: {"type": "array", "items": items, **more}
text = lambda value: json.dumps(value, ensure_ascii=False)

TREE = {"$defs": {"node": closed({"name": STRING, "children": listed({"$ref": "#/$defs/node"})})}, "$ref": "#/$defs/node"}
LIST = {"$defs": {"list": {"anyOf": [NULL, closed({"head": INTEGER, "tail": {"$ref": "#/$defs/list"}})]}},
        "$ref": "#/$defs/list"}
EXPRESSION = {"$defs": {"e": {"anyOf": [
    closed({"op": {"const": "number"}, "value": NUMBER}),
    closed({"op": {"enum": ["add", "multiply"]}, "left": {"$ref": "#/$defs/e"}, "right": {"$ref": "#/$defs/e"}}),
    closed({"op": {"const": "negate"}, "of": {"$ref": "#/$defs/e"}})]}}, "$ref": "#/$defs/e"}
SHAPES = {"oneOf": [closed({"kind": {"const": "circle"}, "radius": NUMBER}),
                    closed({"kind": {"const": "square"}, "side": NUMBER}),
                    closed({"kind": {"const": "point"}})]}

# name: (schema, values that fit, texts that do not fit or are not JSON or not in our spelling)
UNDERSTOOD = {
    # ---- types
    "string": (STRING, ["", "a", "é\n\"\\/", "😀"], ["1", '"', '"a', '"\n"', '"\\x"', '"\\ud83d"', '"a" ']),
    "integer": (INTEGER, [0, -1, 10, 999999999999999], ["00", "1.0", "-", "+1", "1e3", "-0", '"1"']),
    "number": (NUMBER, [0, -1.5, 1e10, 0.001], ["1.", ".5", "01", "1e", "NaN", "Infinity"]),
    "boolean": (BOOLEAN, [True, False], ["True", "tru", "0"]),
    "null": (NULL, [None], ["nul", "None"]),
    "type list": ({"type": ["string", "null", "integer"]}, ["x", None, 7], ["true", "1.5", "[]"]),
    "integer or number": ({"type": ["integer", "number"]}, [1, 1.5], ["true"]),
    "anything": ({}, [1, "a", [1, {"b": None}], {}], ["[1,2]", "{", "]"]),
    "true": (True, [0, {}], ["", "x"]),
    "any object": ({"type": "object"}, [{}, {"a": 1}, {"a": {"b": [1]}}], ["[]", "{1: 2}"]),
    "any array": ({"type": "array"}, [[], [1, "a", None]], ["{}", "[1 ,2]"]),
    "nothing but notes": ({"title": "T", "description": "D", "default": 1, "examples": [2]}, [3, "x"], ["?"]),
    # ---- enum and const
    "enum of strings": ({"enum": ["red", "green", "gray"]}, ["red", "gray"], ['"re"', '"reds"', '"blue"']),
    "enum that shares beginnings": ({"enum": ["a", "ab", "abc", "b"]}, ["a", "ab", "abc", "b"], ['"ac"', '""']),
    "enum of all kinds": ({"enum": [1, 1.5, "1", None, True, [1, 2], {"a": [None]}]}, [1, 1.5, "1", None, True, [1, 2], {"a": [None]}],
                          ["2", "false", "[1]"]),
    "enum with a type": ({"type": "string", "enum": ["x", 1, None]}, ["x"], ["1", "null"]),
    "const": ({"const": {"v": "one", "n": [1, 2]}}, [{"v": "one", "n": [1, 2]}], ['{"v": "two"}']),
    "const with escapes": ({"const": "a\"b\\c\nd\u00e9"}, ["a\"b\\c\nd\u00e9"], ['"a"']),
    "one enum of many": ({"enum": [f"item-{i:04}" for i in range(2000)]}, ["item-0000", "item-1999"], ['"item-2000"']),
    # ---- strings
    "minLength": ({"type": "string", "minLength": 3}, ["abc", "abcd", "日本語"], ['""', '"ab"', '"日本"']),
    "maxLength": ({"type": "string", "maxLength": 3}, ["", "abc", "日本語", "\"\"\""], ['"abcd"', '"日本語日"']),
    "both lengths": ({"type": "string", "minLength": 2, "maxLength": 4}, ["ab", "abcd", "é\n"], ['"a"', '"abcde"']),
    "exactly twenty": ({"type": "string", "minLength": 20, "maxLength": 20}, ["a" * 20, "é" * 20], [text("a" * 19), text("a" * 21)]),
    "no characters": ({"type": "string", "maxLength": 0}, [""], ['"a"']),
    "up to 200": ({"type": "string", "maxLength": 200}, ["", "x" * 200], [text("x" * 201)]),
    "pattern of digits": ({"type": "string", "pattern": "^[0-9]{3}-[0-9]{4}$"}, ["555-1234"], ['"5551234"', '"555-12345"']),
    "pattern with choices": ({"type": "string", "pattern": "^(?:cat|dog|bird)s?$"}, ["cat", "dogs"], ['"catss"', '"fish"']),
    "pattern not anchored": ({"type": "string", "pattern": "ab+c"}, ["abc", "xxabbbcyy"], ['"ac"', '"ab"']),
    "pattern of words": ({"type": "string", "pattern": "^[A-Z][a-z]*(?: [A-Z][a-z]*){0,3}$"}, ["A", "Ada Lovelace"], ['"ada"', '"A  B"']),
    "pattern that needs escapes": ({"type": "string", "pattern": "^[\"\\\\\\n]+$"}, ["\"\\\n"], ['"a"', '""']),
    "pattern beyond ASCII": ({"type": "string", "pattern": "^[à-ÿ😀-😎日]{1,4}$"}, ["é", "😃日"], ['"e"', '"😐"']),
    "pattern of anything else": ({"type": "string", "pattern": "^[^aeiou]*$"}, ["", "xyz", "é\"\n"], ['"xa"']),
    "pattern of hex": ({"type": "string", "pattern": "^#(?:[0-9a-fA-F]{3}){1,2}$"}, ["#fff", "#00ff7F"], ['"#ffff"']),
    "pattern of a path": ({"type": "string", "pattern": "^(/[\\w.-]+)+/?$"}, ["/a", "/usr/local/"], ['""', '"a/b"']),
    "date": ({"type": "string", "format": "date"}, ["2026-02-28"], ['"2026-13-01"', '"26-01-01"']),
    "time": ({"type": "string", "format": "time"}, ["23:59:59Z", "00:00:00.5+01:30"], ['"24:00:00Z"']),
    "date-time": ({"type": "string", "format": "date-time"}, ["2026-01-02T03:04:05Z"], ['"2026-01-02 03:04:05Z"']),
    "uuid": ({"type": "string", "format": "uuid"}, ["12345678-90ab-cdef-1234-567890abcdef"], ['"12345678"']),
    "ipv4": ({"type": "string", "format": "ipv4"}, ["0.0.0.0", "255.10.1.99"], ['"256.1.1.1"', '"1.2.3"']),
    "email": ({"type": "string", "format": "email"}, ["a.b@example.org"], ['"a@"', '"@b.org"']),
    "hostname": ({"type": "string", "format": "hostname"}, ["a", "www.example-site.org"], ['"-a"', '"a..b"']),
    # ---- numbers
    "integers from 0": ({"type": "integer", "minimum": 0}, [0, 5, 100], ["-1"]),
    "integers to 255": ({"type": "integer", "minimum": 0, "maximum": 255}, [0, 9, 10, 99, 100, 199, 255], ["256", "-1", "300", "01"]),
    "integers around 0": ({"type": "integer", "minimum": -17, "maximum": 123}, [-17, -9, -1, 0, 8, 123], ["-18", "124", "-20"]),
    "integers below 0": ({"type": "integer", "exclusiveMaximum": 0, "minimum": -1000}, [-1, -999, -1000], ["0", "-1001", "1"]),
    "integers between fractions": ({"type": "integer", "exclusiveMinimum": 0.5, "maximum": 3.5}, [1, 2, 3], ["0", "4"]),
    "one integer": ({"type": "integer", "minimum": 42, "maximum": 42}, [42], ["41", "43", "4", "420"]),
    "numbers from 0 to 1": ({"type": "number", "minimum": 0, "maximum": 1}, [0, 0.5, 1, 0.0], ["1.5", "-0.5", "2", "1.0"]),
    "numbers above 0": ({"type": "number", "exclusiveMinimum": 0}, [0.5, 1, 7.25, 0.01], ["0", "0.0", "-1", "-0.5"]),
    "numbers around 0": ({"type": "number", "minimum": -90, "maximum": 90}, [-90, -89.5, -0.5, 0, 89.99, 90], ["90.5", "-90.5", "91"]),
    "numbers below 0": ({"type": "number", "exclusiveMaximum": 0}, [-0.5, -1, -12.75], ["0", "1", "0.5", "-0.0"]),
    # ---- objects
    "one property": (closed({"a": INTEGER}), [{"a": 1}], ["{}", '{"a": "1"}', '{"a": 1, "b": 2}', '{"b": 1}', '{"a":1}']),
    "several kinds": (closed({"name": STRING, "age": {"type": "integer", "minimum": 0}, "admin": BOOLEAN, "nick": {"type": ["string", "null"]}}),
                      [{"name": "x", "age": 3, "admin": False, "nick": None}], ['{"name": "x"}', '{"age": 3, "name": "x"}']),
    "optional ones": (closed({"a": INTEGER, "b": INTEGER, "c": INTEGER}, []), [{}, {"a": 1}, {"b": 1}, {"c": 1}, {"a": 1, "c": 2}, {"a": 1, "b": 2, "c": 3}],
                      ['{, "b": 1}', '{"a": 1, }', '{"c": 1, "a": 2}', '{"a": 1"b": 2}']),
    "required in the middle": (closed({"a": INTEGER, "b": INTEGER, "c": INTEGER}, ["b"]), [{"b": 1}, {"a": 0, "b": 1}, {"b": 1, "c": 2}],
                               ["{}", '{"a": 1}', '{"a": 1, "c": 2}']),
    "names that begin alike": (closed({"a": INTEGER, "ab": INTEGER, "abc": INTEGER}, ["ab"]), [{"a": 1, "ab": 2, "abc": 3}, {"ab": 1}], ['{"a": 1}']),
    "odd names": (closed({"with \"quotes\"": INTEGER, "é\n": INTEGER, "": INTEGER}), [{"with \"quotes\"": 1, "é\n": 2, "": 3}], ["{}"]),
    "no properties": ({"type": "object", "properties": {}, "additionalProperties": False}, [{}], ['{"a": 1}']),
    "thirty optional": (closed({f"field_{i}": {"type": "integer"} for i in range(30)}, []), [{}, {"field_29": 1}, {"field_0": 1, "field_7": 2}], ['{"field_30": 1}']),
    "nested": (closed({"user": closed({"address": closed({"street": STRING, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}})})}),
               [{"user": {"address": {"street": "x", "zip": "12345"}}}], ['{"user": {}}', '{"user": {"address": {"street": "x", "zip": "1"}}}']),
    "a map": ({"type": "object", "additionalProperties": INTEGER}, [{}, {"x": 1, "y": 2}], ['{"x": "1"}']),
    "a small map": ({"type": "object", "additionalProperties": BOOLEAN, "minProperties": 1, "maxProperties": 2}, [{"x": True}, {"x": True, "y": False}],
                    ["{}", '{"x": true, "y": true, "z": true}']),
    "known and others": (obj({"id": INTEGER, "idea": STRING}, ["id"], additionalProperties={"type": "boolean"}),
                         [{"id": 1}, {"id": 1, "idea": "x"}, {"id": 1, "other": True}, {"id": 1, "ide": False, "z": True}, {"id": 1, "ideas": True}],
                         ["{}", '{"id": 1, "other": 2}', '{"id": 1, "id": true}', '{"id": 1, "idea": true}']),
    "required but not described": ({"type": "object", "required": ["x"], "properties": {"y": INTEGER}}, [{"y": 1, "x": [1]}, {"x": None}], ['{"y": 1}']),
    "extras are left out unless asked for": (obj({"a": INTEGER}), [{"a": 1}], ['{"a": "x"}']),
    # ---- arrays
    "integers": (listed(INTEGER), [[], [1], [1, 2, 3]], ['["1"]', "[1,]", "[1 , 2]"]),
    "two to four": (listed(INTEGER, minItems=2, maxItems=4), [[1, 2], [1, 2, 3, 4]], ["[1]", "[]", "[1, 2, 3, 4, 5]"]),
    "at least three": (listed(BOOLEAN, minItems=3), [[True] * 3, [False] * 9], ["[true, true]"]),
    "at least one": (listed(STRING, minItems=1), [["a"], ["a", "b"]], ["[]"]),
    "at most two": (listed(STRING, maxItems=2), [[], ["a"], ["a", "b"]], ['["a", "b", "c"]']),
    "exactly a thousand": (listed({"enum": [0]}, minItems=1000, maxItems=1000), [[0] * 1000], [text([0] * 999)]),
    "a matrix": (listed(listed(NUMBER, minItems=2, maxItems=2), minItems=2, maxItems=2), [[[1, 2], [3, 4]]], ["[[1, 2]]", "[[1], [2]]"]),
    "a tuple": ({"type": "array", "prefixItems": [STRING, INTEGER], "items": False, "minItems": 2}, [["a", 1]], ['["a"]', '["a", 1, 2]', "[1, 1]"]),
    "a tuple and more": ({"type": "array", "prefixItems": [STRING], "items": INTEGER, "maxItems": 3}, [["a"], ["a", 1], ["a", 1, 2]], ['["a", "b"]', '["a", 1, 2, 3]']),
    "no items": (listed(INTEGER, maxItems=0), [[]], ["[1]"]),
    "objects in a list": (listed(closed({"id": INTEGER, "tags": listed(STRING)})), [[], [{"id": 1, "tags": []}, {"id": 2, "tags": ["x"]}]], ['[{"id": 1}]']),
    # ---- choices
    "anyOf types": ({"anyOf": [STRING, INTEGER, NULL]}, ["a", 1, None], ["true", "1.5"]),
    "anyOf objects that begin alike": ({"anyOf": [closed({"type": {"const": "a"}, "x": INTEGER}), closed({"type": {"const": "b"}, "y": STRING})]},
                                       [{"type": "a", "x": 1}, {"type": "b", "y": "s"}], ['{"type": "a", "y": "s"}']),
    "anyOf that differs late": ({"anyOf": [closed({"a": INTEGER, "b": INTEGER}), closed({"a": INTEGER, "c": STRING})]},
                                [{"a": 1, "b": 2}, {"a": 1, "c": "x"}], ['{"a": 1, "c": 2}', '{"a": 1}']),
    "anyOf twice the same": ({"anyOf": [INTEGER, INTEGER]}, [1], ['"1"']),
    "oneOf by a constant": (SHAPES, [{"kind": "circle", "radius": 1}, {"kind": "point"}], ['{"kind": "circle", "side": 1}']),
    "oneOf by type": ({"oneOf": [STRING, listed(STRING)]}, ["a", ["a"]], ["1"]),
    "allOf of one": ({"allOf": [INTEGER], "description": "as older tools write a reference"}, [1], ['"1"']),
    "optional by null": (closed({"a": {"anyOf": [INTEGER, NULL], "default": None}}), [{"a": 1}, {"a": None}], ["{}"]),
    # ---- references
    "a reference": ({"$defs": {"id": {"type": "integer", "minimum": 1}}, **closed({"a": {"$ref": "#/$defs/id"}, "b": {"$ref": "#/$defs/id"}})},
                    [{"a": 1, "b": 2}], ['{"a": 0, "b": 1}']),
    "older definitions": ({"definitions": {"s/t~u": STRING}, **closed({"a": {"$ref": "#/definitions/s~1t~0u"}})}, [{"a": "x"}], ['{"a": 1}']),
    "a tree": (TREE, [{"name": "a", "children": []}, {"name": "a", "children": [{"name": "b", "children": []}]}], ['{"name": "a"}']),
    "a list by recursion": (LIST, [None, {"head": 1, "tail": None}, {"head": 1, "tail": {"head": 2, "tail": None}}], ['{"head": 1}']),
    "expressions": (EXPRESSION, [{"op": "number", "value": 1}, {"op": "negate", "of": {"op": "add", "left": {"op": "number", "value": 1}, "right": {"op": "number", "value": 2}}}],
                    ['{"op": "number", "left": 1}', '{"op": "negate"}']),
    "the whole again": ({"type": "object", "properties": {"v": INTEGER, "next": {"anyOf": [{"$ref": "#"}, NULL]}}, "required": ["v", "next"], "additionalProperties": False},
                        [{"v": 1, "next": None}, {"v": 1, "next": {"v": 2, "next": None}}], ['{"v": 1}']),
    "a branch that nothing fits": ({"anyOf": [{"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"], "additionalProperties": False}, INTEGER]},
                                   [1, {"x": 1}, {"x": {"x": 2}}], ["{}", "null"]),
    # ---- as tools write them
    "a weather report": (closed({"city": STRING, "temperature": NUMBER, "unit": {"enum": ["celsius", "fahrenheit"]},
                                 "conditions": listed({"enum": ["sun", "rain", "snow", "fog"]}, minItems=1, maxItems=3)}),
                         [{"city": "Oslo", "temperature": -3.5, "unit": "celsius", "conditions": ["snow"]}], ['{"city": "Oslo"}']),
    "steps of an answer": (closed({"steps": listed(closed({"explanation": STRING, "output": STRING})), "final_answer": STRING}),
                           [{"steps": [{"explanation": "a", "output": "b"}], "final_answer": "c"}], ['{"steps": []}']),
    "an order": (closed({"id": {"type": "string", "format": "uuid"}, "placed": {"type": "string", "format": "date-time"},
                         "lines": listed(closed({"sku": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{4}$"}, "count": {"type": "integer", "minimum": 1, "maximum": 99},
                                                 "note": {"type": "string", "maxLength": 40}}, ["sku", "count"]), minItems=1, maxItems=5),
                         "paid": BOOLEAN}),
                 [{"id": "12345678-90ab-cdef-1234-567890abcdef", "placed": "2026-01-02T03:04:05Z", "lines": [{"sku": "AB1234", "count": 2}], "paid": True}],
                 ['{"id": "x"}']),
}

# name: (schema, what the refusal names)
REFUSED = {
    "uniqueItems": (listed(INTEGER, uniqueItems=True), '"uniqueItems"'),
    "contains": (listed(INTEGER, contains={"const": 1}), '"contains"'),
    "multipleOf": ({"type": "integer", "multipleOf": 3}, '"multipleOf"'),
    "not": ({"not": STRING}, '"not"'),
    "if": ({"if": STRING, "then": STRING}, '"if"'),
    "patternProperties": ({"type": "object", "patternProperties": {"^x": INTEGER}}, '"patternProperties"'),
    "propertyNames": ({"type": "object", "propertyNames": {"pattern": "^a$"}}, '"propertyNames"'),
    "dependentRequired": ({"type": "object", "dependentRequired": {"a": ["b"]}}, '"dependentRequired"'),
    "unevaluatedProperties": ({"type": "object", "unevaluatedProperties": False}, '"unevaluatedProperties"'),
    "several in allOf": ({"allOf": [INTEGER, {"minimum": 3}]}, '"allOf"'),
    "oneOf that may both fit": ({"oneOf": [STRING, {"type": "string", "maxLength": 3}]}, '"oneOf"'),
    "anyOf beside type": ({"type": "object", "anyOf": [{"required": ["a"]}]}, '"type" beside "anyOf"'),
    "look ahead": ({"type": "string", "pattern": "^(?=a)b$"}, "(?"),
    "back reference": ({"type": "string", "pattern": "^(a)\\1$"}, "\\1"),
    "word boundary": ({"type": "string", "pattern": "\\bx"}, "\\b"),
    "property of characters": ({"type": "string", "pattern": "^\\p{L}$"}, "\\p"),
    "open bracket": ({"type": "string", "pattern": "^[a"}, "an open ["),
    "anchor inside": ({"type": "string", "pattern": "a^b"}, "^ inside"),
    "half an alternative": ({"type": "string", "pattern": "^a|b$"}, "^(?:a|b)$"),
    "unknown format": ({"type": "string", "format": "iri"}, '"iri"'),
    "pattern and length": ({"type": "string", "pattern": "^a*$", "maxLength": 3}, '"maxLength"'),
    "bounds of fractions": ({"type": "number", "minimum": 0.5}, "0.5"),
    "no integer between": ({"type": "integer", "minimum": 2, "maximum": 1}, "no whole number"),
    "lengths in the wrong order": ({"type": "string", "minLength": 2, "maxLength": 1}, '"minLength" is above'),
    "negative count": (listed(INTEGER, minItems=-1), "minItems"),
    "an unknown type": ({"type": "text"}, '"text" is no type'),
    "an unknown keyword": ({"type": "string", "minLenght": 3}, '"minLenght"'),
    "a reference to elsewhere": ({"$ref": "https://example.org/schema"}, "#/"),
    "a reference to nothing": ({"$ref": "#/$defs/x"}, "is not in the schema"),
    "itself": ({"$ref": "#"}, "no finite text"),
    "itself in a choice": ({"anyOf": [{"$ref": "#"}, INTEGER]}, "refers to itself"),
    "no end": (closed({"x": {"$ref": "#"}}), "no finite text"),
    "never": (False, "no finite text"),
    "not a schema": ({"type": "array", "items": 3}, "expected a schema"),
    "empty enum": ({"enum": []}, "enum"),
    "minProperties of others": ({"type": "object", "additionalProperties": INTEGER, "minProperties": 2}, '"minProperties"'),
    "too many states": ({"type": "string", "pattern": "^(?:(?:[a-z]{1,99}){1,99}){1,99}$"}, "too large"),
}


def main():
    for name, (schema, fits, misfits) in UNDERSTOOD.items():
        validator = jsonschema.Draft202012Validator(schema)
        for value in fits:
            validator.validate(value)
        assert misfits, name
    assert len(UNDERSTOOD) >= 60
    rows = [{"name": name, "schema": schema, "fits": [text(value) for value in fits], "misfits": misfits}
            for name, (schema, fits, misfits) in UNDERSTOOD.items()]
    refused = [{"name": name, "schema": schema, "names": names} for name, (schema, names) in REFUSED.items()]
    sys.stdout.write('{"understood": [\n')
    sys.stdout.write(",\n".join(text(row) for row in rows))
    sys.stdout.write('\n], "refused": [\n')
    sys.stdout.write(",\n".join(text(row) for row in refused))
    sys.stdout.write("\n]}\n")


if __name__ == "__main__":
    main()

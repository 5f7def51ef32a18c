// JSON Schema to programs. A program writes JSON in one spelling, that of Python's json.dumps: ", "
// and ": " between things and no other space, properties in the order of the schema, numbers of at
// most 15 digits before and behind the point. All that it writes is valid; not all that is valid is
// written. In the same way unlisted properties come only where additionalProperties asks for them.
//
// Understood: type (also a list), enum, const, anyOf, oneOf whose branches exclude each other,
// allOf of one, $ref within the schema (also recursive), properties, required,
// additionalProperties, maxProperties, items, prefixItems, minItems, maxItems, minLength,
// maxLength, pattern (regex.h), format (date, time, date-time, uuid, ipv4, email, hostname),
// minimum, maximum and their exclusive forms. Descriptions are passed over; anything else is
// refused by its name and place.
#pragma once

#include <string>
#include <variant>

#include "base/json.h"

#include "grammar/builder.h"

namespace tessera::grammar {

using Schema = nlohmann::ordered_json;

// Why there is no program: a sentence with the place in the schema, "#/properties/a: …".
struct Refusal {
    std::string message;
};
using OrRefusal = std::variant<Program, Refusal>;

// A JSON value that fits the schema.
OrRefusal json_schema(const Schema& schema);

}  // namespace tessera::grammar

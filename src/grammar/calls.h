// Tool calls in the MiMo-V2 dialect (text/output.h reads them), as a program: one call, whole.
#pragma once

#include <functional>
#include <span>

#include "grammar/schema.h"

namespace tessera::grammar {

// What "<tool_call>" is followed by:
//
//   "\n<function=" NAME ">\n" {"<parameter=" NAME ">" VALUE "</parameter>\n"} "</function>\n"
//   and the added token "</tool_call>"
//
// for one of `tools`, in OpenAI's form ({"type": "function", "function": {name, parameters}}), with
// its parameters in the order of its schema. A value is JSON, or bare text where `is_string` says
// so of its schema, given the schema of all parameters to look references up in.
using IsString = std::function<bool(const Schema& parameter, const Schema& parameters)>;
OrRefusal tool_call(std::span<const Schema> tools, const IsString& is_string);

}  // namespace tessera::grammar

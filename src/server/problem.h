// A request that cannot be served, as a value: what was wrong, where, and what a client should do.
// How an API spells it is the API's business.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace tessera {

struct ApiProblem {
    uint32_t status = 400;
    std::string message;         // for people: the field, its value, what was expected
    std::string param = {};      // the field; empty for none
    std::string code = {};       // for programs, "context_length_exceeded"; empty for none
    int64_t retry_after_ms = 0;  // of a 429 or 503: when it is worth trying again; 0: not said
};

template <typename T>
using OrProblem = std::variant<T, ApiProblem>;

// The class of error that a status stands for: "invalid_request_error", "rate_limit_error", …
std::string_view error_type(uint32_t status);

// `text` in quotes, as JSON.
void put_string(std::string& out, std::string_view text);
// The same, or null if it is empty.
void put_string_or_null(std::string& out, std::string_view text);

}  // namespace tessera

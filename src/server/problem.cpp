#include "server/problem.h"

#include "tessera/model.h"

namespace tessera {

std::string_view error_type(uint32_t status) {
    switch (status) {
        case 401:
            return "authentication_error";
        case 403:
            return "permission_error";
        case 404:
            return "not_found_error";
        case 413:
            return "request_too_large";
        case 429:
            return "rate_limit_error";
        case 503:
            return "overloaded_error";
        default:
            return status >= 500 ? "api_error" : "invalid_request_error";
    }
}

void put_string(std::string& out, std::string_view text) {
    out += '"';
    append_json_escaped(text, out);
    out += '"';
}

void put_string_or_null(std::string& out, std::string_view text) {
    if (text.empty()) {
        out += "null";
        return;
    }
    put_string(out, text);
}

}  // namespace tessera

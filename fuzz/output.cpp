// A reply from a model gone mad: read whole or in pieces it gives the same events, each text is
// where it says it is, its arguments are JSON, and none of its text but tags and space disappears.
//
// Input: one byte (bit 0: the prompt left reasoning open; the rest: how long the pieces are), then
// the reply.
#include "text/output.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "text/utf8.h"

namespace {

using Event = tessera::OutputEvent;
using Kind = Event::Kind;

void join(const std::vector<Event>& events, std::string_view reply, std::vector<Event>& joined) {
    for (const Event& event : events) {
        if (event.kind == Kind::kReasoning || event.kind == Kind::kContent) {
            CHECK(event.text.size() <= event.end && event.end <= reply.size());
            CHECK(reply.substr(0, event.end).ends_with(event.text));
        }
        const bool text = event.kind != Kind::kCallBegin && event.kind != Kind::kCallEnd;
        if (text && !joined.empty() && joined.back().kind == event.kind) {
            joined.back().text += event.text;
        } else {
            joined.push_back(event);
        }
    }
}

std::vector<Event> read(std::string_view reply, size_t piece_bytes, tessera::Opening opening,
                        const tessera::OrderedJson& tools) {
    tessera::OutputParser parser(opening, tools);
    std::vector<Event> joined;
    for (size_t at = 0; at < reply.size(); at += piece_bytes) {
        join(parser.push(reply.substr(at, piece_bytes)), reply, joined);
    }
    join(parser.finish(), reply, joined);
    return joined;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static const auto tools = tessera::OrderedJson::parse(
        R"([{"name": "f", "parameters": {"properties": {"n": {"type": "integer"},
            "l": {"type": ["array", "null"]}, "t": {"type": "string"}}}}])");
    if (size == 0) return 0;
    const auto opening = (data[0] & 1) != 0 ? tessera::Opening::kReasoningMayOpen
                                            : tessera::Opening::kReasoningClosed;
    const std::string reply =
        tessera::repair_utf8({reinterpret_cast<const char*>(data) + 1, size - 1});
    const std::vector<Event> whole = read(reply, reply.size() + 1, opening, tools);
    CHECK(read(reply, 1, opening, tools) == whole);
    CHECK(read(reply, size_t{2} + (data[0] >> 1), opening, tools) == whole);
    bool in_call = false;
    std::string arguments;
    for (const Event& event : whole) {
        CHECK(in_call == (event.kind == Kind::kArguments || event.kind == Kind::kCallEnd));
        CHECK(tessera::valid_utf8_prefix(event.text) == event.text.size());
        if (event.kind == Kind::kCallBegin) in_call = true;
        if (event.kind == Kind::kArguments) arguments += event.text;
        if (event.kind != Kind::kCallEnd) continue;
        in_call = false;
        CHECK(tessera::OrderedJson::accept(arguments));
        arguments.clear();
    }
    CHECK(!in_call);
    return 0;
}

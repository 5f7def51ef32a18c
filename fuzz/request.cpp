// A stranger's bytes as an HTTP request, and its body as each API's JSON: however it is cut the
// same comes out, whatever is refused is refused with a problem that is JSON itself, and what is
// accepted can be sampled with.
//
// Input: one byte (how long the pieces are), then the request.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/json.h"
#include "server/anthropic.h"
#include "server/openai.h"
#include "server/request_reader.h"

namespace {

using tessera::RequestReader;

struct Seen {
    RequestReader::At at = RequestReader::At::kHead;
    size_t taken = 0;
    std::string path, body;
    size_t headers = 0;
    uint32_t status = 0;

    bool operator==(const Seen&) const = default;
};

Seen read(std::string_view bytes, size_t piece_bytes) {
    static const tessera::HttpLimits limits{.header_bytes_max = 512, .body_bytes_max = 4096};
    RequestReader reader(limits);
    Seen seen;
    // What was not taken is offered again with more, as a connection does.
    for (size_t offered = 0; offered < bytes.size();) {
        offered = std::min(bytes.size(), offered + piece_bytes);
        for (size_t taken = 1; taken > 0 && seen.taken < offered;) {
            if (reader.at() == RequestReader::At::kEnd ||
                reader.at() == RequestReader::At::kProblem)
                break;
            const auto before = reader.at();
            taken = reader.read(bytes.substr(seen.taken, offered - seen.taken));
            CHECK(seen.taken + taken <= offered);
            seen.taken += taken;
            if (reader.at() != before) taken = 1;
        }
    }
    seen.at = reader.at();
    seen.status = reader.status();
    CHECK((seen.at == RequestReader::At::kProblem) == (seen.status != 0));
    if (seen.at != RequestReader::At::kEnd) {
        seen.taken = 0;  // how far it came before that is the grammar's business
        return seen;
    }
    const tessera::HttpRequest head = reader.head();
    seen.path = head.path;
    seen.headers = head.headers.size();
    CHECK(seen.headers <= 512);
    seen.body = reader.take_body();
    CHECK(seen.body.size() <= 4096);
    return seen;
}

void hold_against(const tessera::OrProblem<tessera::Ask>& asked) {
    if (const auto* problem = std::get_if<tessera::ApiProblem>(&asked)) {
        CHECK(problem->status == 400 || problem->status == 501);
        CHECK(!problem->message.empty());
        CHECK(tessera::Json::accept(tessera::openai::error_body(*problem)));
        CHECK(tessera::Json::accept(tessera::anthropic::error_body(*problem, "id")));
        return;
    }
    const auto& ask = std::get<tessera::Ask>(asked);
    CHECK(!ask.sampling.problem());
    CHECK(ask.stops.size() <= 4 && ask.tokens_max != 0u);
    CHECK(!ask.max_draft || *ask.max_draft <= 7);
}

void ask(std::string_view body) {
    const auto json = tessera::parse_body(body);
    if (std::holds_alternative<tessera::ApiProblem>(json)) return;
    const auto& object = std::get<tessera::OrderedJson>(json);
    hold_against(tessera::openai::parse_chat(object, {}));
    hold_against(tessera::openai::parse_completion(object, {}));
    hold_against(tessera::anthropic::parse_message(object, {}));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
    const Seen whole = read(bytes, bytes.size() + 1);
    // How early something broken is found may depend on the cuts; what a request is may not.
    for (const size_t piece_bytes : {size_t{1}, size_t{2} + data[0]}) {
        const Seen cut = read(bytes, piece_bytes);
        const bool ends = whole.at == RequestReader::At::kEnd;
        CHECK(ends ? cut == whole : cut.at != RequestReader::At::kEnd);
    }
    if (whole.at == RequestReader::At::kEnd) ask(whole.body);
    ask(bytes);  // bodies are found sooner without headers
    return 0;
}

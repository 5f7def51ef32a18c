// What a client asks for, whichever API it speaks: the middle between JSON and a job. And the
// fields that the APIs have in common.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "server/fields.h"
#include "tessera/constraint.h"
#include "tessera/model.h"
#include "tessera/session.h"

namespace tessera {

struct Conversation {
    std::vector<Turn> turns;
    OrderedJson tools = nullptr;  // OpenAI's form; null where none may be called
    bool thinking = false;
    std::string reply_begins;              // where the client asked for a call; else empty
    std::optional<Constraint> constraint;  // what the reply, behind that, has to be
};

struct Ask {
    std::string model;  // as the client wrote it

    // A conversation, or a text to continue: its words or its tokens.
    std::variant<Conversation, std::string, std::vector<Token>> prompt;

    Sampling sampling;
    std::optional<uint64_t> seed;
    std::optional<uint32_t> max_draft;  // 0: no speculation
    std::optional<uint32_t> tokens_max;
    std::vector<std::string> stops;
    std::optional<uint32_t> likelihood_top;
    bool stream = false;
    bool include_usage = false;   // of a stream
    bool include_rounds = false;  // of a stream: how its text came about
    bool one_call = false;        // no more than one tool call
};

// temperature (up to `temperature_max`), top_p, top_k, min_p into what is recommended for the
// model.
void read_sampling(Fields& fields, double temperature_max, Sampling& sampling);

// "speculative": false, true or {"max_draft": 1 to 7}.
std::optional<uint32_t> read_max_draft(Fields& fields);

// A string, or a list of at most `count_max` of them; none empty, each at most kStopBytesMax.
inline constexpr size_t kStopBytesMax = 1024;
std::vector<std::string> read_stops(Fields& fields, std::string_view name, size_t count_max);

// "model": has to be there.
std::string read_model(Fields& fields);

// Arguments of a call that a client sends back.
std::optional<OrderedJson> parse_arguments(const std::string& text);
bool is_function_name(std::string_view name);

// The reply has to be a call: of the tool `name` or, if it is empty, of any of the conversation's,
// which are OpenAI's form. A problem names `field`.
void force_call(Fields& fields, std::string_view field, std::string_view name,
                Conversation& conversation);

// The content of the reply has to be JSON of this schema. A problem names `field`.
void force_schema(Fields& fields, std::string_view field, const OrderedJson& schema,
                  Conversation& conversation);

}  // namespace tessera

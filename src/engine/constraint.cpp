// Constraints are compiled without a model.
#include "tessera/constraint.h"

#include "text/output.h"

#include "grammar/calls.h"
#include "grammar/matcher.h"
#include "grammar/schema.h"

namespace tessera {

Constraint::OrProblem Constraint::made(std::variant<grammar::Program, grammar::Refusal>&& from) {
    if (auto* refusal = std::get_if<grammar::Refusal>(&from)) return std::move(refusal->message);
    Constraint constraint;
    constraint.program_ =
        std::make_shared<const grammar::Program>(std::move(std::get<grammar::Program>(from)));
    return constraint;
}

Constraint::OrProblem Constraint::json_schema(const OrderedJson& schema) {
    return made(grammar::json_schema(schema));
}

Constraint::OrProblem Constraint::tool_call(const OrderedJson& tools) {
    const std::vector<OrderedJson> each(tools.begin(), tools.end());
    OrProblem call = made(grammar::tool_call(each, is_string_value));
    if (auto* const constraint = std::get_if<Constraint>(&call)) {
        constexpr size_t kBytesMax = 4096;
        // What is forced is so in any vocabulary.
        static const auto kNoTokens = std::make_shared<const grammar::Vocabulary>(
            std::vector<std::string_view>(), std::vector<uint32_t>(),
            std::vector<grammar::Vocabulary::Marker>(), 0);
        grammar::Matcher matcher(
            std::make_shared<grammar::LocalMasks>(constraint->program_, kNoTokens));
        constraint->begins = matcher.forced(kBytesMax).bytes;
    }
    return call;
}

}  // namespace tessera

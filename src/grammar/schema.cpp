#include "grammar/schema.h"

#include "base/error.h"

#include "grammar/compiler.h"

namespace tessera::grammar {
OrRefusal json_schema(const Schema& schema) {
    try {
        Builder builder;
        Compiler compiler(builder, schema);
        const Place start = compiler.value(schema, "#", builder.end());
        compiler.finish();
        return builder.finish(start, "schema " + schema.dump());
    } catch (const Error& error) {
        return Refusal{error.what()};
    }
}

}  // namespace tessera::grammar

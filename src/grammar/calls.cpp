#include "grammar/calls.h"

#include <set>

#include "base/error.h"

#include "grammar/compiler.h"
#include "grammar/keywords.h"

namespace tessera::grammar {
namespace {

constexpr std::string_view kValueEnd = "</parameter>";

// One function, from its name on.
Place function_call(Builder& builder, Builder::Rule free_text, const Schema& function,
                    const IsString& is_string, Place next) {
    static const Schema kNone = Schema::object(), kAny = Schema::object();
    const auto name = function.at("name").get<std::string>();
    const auto given = function.find("parameters");
    const Schema& parameters = given != function.end() && given->is_object() ? *given : kNone;
    Compiler compiler(builder, parameters);
    Place place = builder.bytes("</function>\n", next);
    const std::string path = name + "#/properties/";
    const std::vector<Property> properties = properties_of(parameters, kAny, name + "#");
    for (size_t i = properties.size(); i-- > 0;) {
        const Property& property = properties[i];
        if (property.name.empty() || property.name.find_first_of("<>\n") != std::string::npos)
            fail("{}{}: a parameter's name has no <, > or line end", path, property.name);
        Place value = builder.bytes("\n", place);
        if (!is_string(property.schema, parameters)) {
            value = compiler.value(property.schema, path + property.name,
                                   builder.bytes(kValueEnd, value));
        } else if (const auto raw = compiler.raw(property.schema, path + property.name,
                                                 builder.bytes(kValueEnd, value))) {
            value = *raw;
        } else {
            value = builder.call(free_text, value);
        }
        const Place here = builder.bytes("<parameter=" + property.name + ">", value);
        place = property.required ? here : builder.either({here, place});
    }
    compiler.finish();
    return builder.bytes(name + ">\n", place);
}

}  // namespace

OrRefusal tool_call(std::span<const Schema> tools, const IsString& is_string) {
    try {
        if (tools.empty()) fail("there is no tool to call");
        Builder builder;
        const Builder::Rule free_text = builder.declare();
        builder.define(free_text, [&](Place end) { return builder.until(kValueEnd, end); });
        const Place close = builder.marker("</tool_call>", builder.end());
        std::vector<Place> places;
        std::string source = "call";
        for (const Schema& tool : tools) {
            places.push_back(
                function_call(builder, free_text, tool.at("function"), is_string, close));
            source += tool.dump();
        }
        return builder.finish(builder.bytes("\n<function=", builder.either(std::move(places))),
                              std::move(source));
    } catch (const Error& error) {
        return Refusal{error.what()};
    }
}

}  // namespace tessera::grammar

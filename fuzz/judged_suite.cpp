// Any bytes as JSON lines of eval: refused, or texts or tasks whose parts are not empty.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "base/error.h"

#include "judge/suite.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    try {
        const tessera::JudgedSuite suite = tessera::parse_judged_suite(text, "suite", "file");
        CHECK(suite.texts.empty() != suite.tasks.empty());
        for (const tessera::JudgedText& one : suite.texts) CHECK(!one.text.empty());
        for (const tessera::JudgedTask& one : suite.tasks) {
            CHECK(!one.prompt.empty() && !one.expected.empty());
            for (const std::string& stop : one.stops) CHECK(!stop.empty());
            CHECK(tessera::is_right(one, one.expected));
        }
    } catch (const tessera::Error&) {
    }
    return 0;
}

// The page's parts, as they stand in server/page; defined by a source that page.cmake writes.
#pragma once

#include <string_view>

namespace tessera::page {

extern const std::string_view kHtml;  // with the lines "@style@" and "@script@" where those go
extern const std::string_view kStyle;
extern const std::string_view kScript;

}  // namespace tessera::page

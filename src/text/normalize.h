// Unicode normalisation form C in linear time (n log n within one run of combining marks). utf8proc
// owns the tables (2.8: Unicode 15); its own reordering is quadratic in such a run, so the order is
// made here. The `tokenizers` package still has the tables of Unicode 9: 98 rare marks that came
// later stay where they stand there, and are ordered here.
#pragma once

#include <string>
#include <string_view>

namespace tessera {

// NFC of `text`, which is well-formed UTF-8. Gives `text` itself where nothing needs a look (all
// below U+0300), otherwise a view of `storage`, which is overwritten.
std::string_view nfc(std::string_view text, std::string& storage);

}  // namespace tessera

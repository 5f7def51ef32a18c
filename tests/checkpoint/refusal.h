// What a refused file says: tests compare words of the message, not only that there is one.
#pragma once

#include <string>

#include "base/error.h"

namespace tessera::test {

// The message of the Error that `read` throws; "accepted" where it throws none.
template <typename Read>
std::string refusal(Read&& read) {
    try {
        read();
    } catch (const Error& error) {
        return error.what();
    }
    return "accepted";
}

}  // namespace tessera::test

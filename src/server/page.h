// The page at "/": one file that asks this server and nobody else. Its parts stand in server/page
// and are joined into the binary when it is built.
#pragma once

#include "server/http.h"

namespace tessera {

// The page, or 304 where the client has it. The headers let it run its own script and style, by
// their hashes, ask this server, and do nothing else.
HttpReply page_reply(const HttpRequest& request);

}  // namespace tessera

// What turns a reply's tokens into what people see: reasoning, content and tool calls, up to a stop
// string. Text types of the house, shown as they are (docs/ARCHITECTURE.md).
#pragma once

#include "text/detokenizer.h"
#include "text/output.h"
#include "text/stop.h"
#include "text/utf8.h"

// Ctrl-C as a question that loops ask, not as an end of the program.
#pragma once

namespace tessera {

// From here on SIGINT only sets the flag; blocking reads return.
void catch_interrupts();

// Whether Ctrl-C was pressed since the last clear.
bool interrupted();
void clear_interrupt();

}  // namespace tessera

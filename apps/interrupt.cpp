#include "interrupt.h"

#include <csignal>

namespace tessera {
namespace {

volatile std::sig_atomic_t pressed = 0;

}  // namespace

void catch_interrupts() {
    struct sigaction action {};
    action.sa_handler = [](int) { pressed = 1; };
    sigaction(SIGINT, &action, nullptr);  // no SA_RESTART: a read at the prompt must return
}

bool interrupted() {
    return pressed != 0;
}
void clear_interrupt() {
    pressed = 0;
}

}  // namespace tessera

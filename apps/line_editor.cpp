#include "line_editor.h"

#include <clocale>
#include <csignal>
#include <cstdio>
#include <string_view>
#include <utility>

#include <histedit.h>

#include "interrupt.h"

namespace tessera {
namespace {

constexpr int kLinesRemembered = 1000;

}  // namespace

struct LineEditor::State {
    EditLine* editor = nullptr;
    History* history = nullptr;
    std::string prompt, file;
    bool cleared = false;  // Ctrl-C ended the line

    static State& of(EditLine* editor) {
        void* state = nullptr;
        el_get(editor, EL_CLIENTDATA, &state);
        return *static_cast<State*>(state);
    }

    static char* prompt_of(EditLine* editor) { return of(editor).prompt.data(); }

    static unsigned char clear(EditLine* editor, int) {
        of(editor).cleared = true;
        el_push(editor, "\n");
        return CC_NORM;
    }

    // The editor's own handler gives the terminal back before, and takes it again after.
    static unsigned char suspend(EditLine*, int) {
        std::raise(SIGTSTP);
        return CC_REDISPLAY;
    }
};

LineEditor::LineEditor(const char* prompt, std::string history)
    : state_(std::make_unique<State>()) {
    // Without a locale of UTF-8 the editor takes a character of several bytes for several. The
    // program's other texts are bytes and do not ask.
    if (const char* named = std::setlocale(LC_CTYPE, "");
        named == nullptr || std::string_view(named) == "C" || std::string_view(named) == "POSIX")
        std::setlocale(LC_CTYPE, "C.UTF-8");

    state_->prompt = prompt;
    state_->file = std::move(history);
    state_->editor = el_init("tessera", stdin, stdout, stderr);
    state_->history = history_init();
    EditLine* const editor = state_->editor;
    HistEvent event;
    ::history(state_->history, &event, H_SETSIZE, kLinesRemembered);
    ::history(state_->history, &event, H_SETUNIQUE, 1);
    if (!state_->file.empty()) ::history(state_->history, &event, H_LOAD, state_->file.c_str());
    el_set(editor, EL_CLIENTDATA, state_.get());
    el_set(editor, EL_EDITOR, "emacs");
    el_set(editor, EL_PROMPT, &State::prompt_of);
    el_set(editor, EL_HIST, ::history, state_->history);
    el_set(editor, EL_BIND, "^R", "em-inc-search-prev", nullptr);
    el_set(editor, EL_SIGNAL, 1);
    // Ctrl-C is a key while a line is edited, and Ctrl-Z with it. As a signal it was lost now and
    // then: one that comes after the screen is drawn and before the key is waited for ends no wait,
    // and the prompt stood still until the next key.
    el_set(editor, EL_SETTY, "-d", "-isig", nullptr);
    // The narrow el_set() would keep copies of these names that nobody can give back.
    el_wset(editor, EL_ADDFN, L"clear-line", L"Ends the line and forgets it", &State::clear);
    el_wset(editor, EL_ADDFN, L"suspend", L"Stops the program until fg", &State::suspend);
    el_set(editor, EL_BIND, "^C", "clear-line", nullptr);
    el_set(editor, EL_BIND, "^Z", "suspend", nullptr);
}

LineEditor::~LineEditor() {
    HistEvent event;
    if (!state_->file.empty()) ::history(state_->history, &event, H_SAVE, state_->file.c_str());
    el_end(state_->editor);
    history_end(state_->history);
}

std::optional<std::string> LineEditor::read() {
    while (true) {
        state_->cleared = false;
        clear_interrupt();
        int bytes = 0;
        const char* line = el_gets(state_->editor, &bytes);
        if (line == nullptr || bytes <= 0) {
            if (!interrupted()) return std::nullopt;
            std::fputc('\n', stdout);  // a signal from elsewhere
            continue;
        }
        std::string text(line, static_cast<size_t>(bytes));
        if (text.back() == '\n') text.pop_back();
        if (state_->cleared) continue;
        clear_interrupt();
        return text;
    }
}

void LineEditor::remember(const std::string& line) {
    HistEvent event;
    ::history(state_->history, &event, H_ENTER, line.c_str());
}

}  // namespace tessera

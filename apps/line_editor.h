// The interactive prompt: a line with editing, history and Ctrl-C that clears it.
#pragma once

#include <memory>
#include <optional>
#include <string>

namespace tessera {

class LineEditor {
  public:
    // `history` is a file, read now and written at the end; empty keeps none. One editor at a time.
    LineEditor(const char* prompt, std::string history);
    ~LineEditor();
    LineEditor(const LineEditor&) = delete;
    LineEditor& operator=(const LineEditor&) = delete;

    // One line without its end; none at Ctrl-D or where the input ends. What was interrupted before
    // is forgotten: interrupted() is of what comes after the line.
    std::optional<std::string> read();

    // What is found again with the arrow keys.
    void remember(const std::string& line);

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace tessera

// SQLite with our habits: prepared statements, WAL, errors that name the file. It knows no table
// but those of its schema, and nothing of what they mean.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>

struct sqlite3;
struct sqlite3_stmt;

namespace tessera {

// Milliseconds since 1970, UTC: the one clock of the store.
using UnixMs = int64_t;
UnixMs unix_ms_now();

// One prepared statement, used again and again by one thread. Parameters count from 1, columns
// from 0. Every call throws Error, naming the file, where SQLite refuses.
class Statement {
  public:
    Statement(sqlite3* database, std::string_view sql);
    Statement(Statement&& other) noexcept : statement_(other.statement_) {
        other.statement_ = nullptr;
    }
    Statement& operator=(Statement&&) = delete;
    ~Statement();

    Statement& bind(int parameter, int64_t value);
    Statement& bind(int parameter, std::optional<int64_t> value);  // none: NULL
    Statement& bind(int parameter, std::string_view value);        // copied

    Statement& bind_bytes(int parameter, std::span<const uint8_t> bytes);

    bool step();   // true: a row is there
    void reset();  // ready to bind and step again
    void run();    // step to the end, then reset

    int64_t integer(int column) const;  // NULL: 0
    std::optional<int64_t> integer_or_null(int column) const;
    std::string text(int column) const;
    std::span<const uint8_t> bytes(int column) const;  // until the next step() or reset()

  private:
    sqlite3_stmt* statement_ = nullptr;
};

// One connection, used by one thread at a time.
class Database {
  public:
    enum class Open : uint8_t {
        kCreate,     // a new file if there is none, readable by its owner alone
        kMustExist,  // for commands that only look: a typo should not make a database
    };
    // Opens the store and brings an older one's tables up to date. Throws Error: not a database,
    // made by a newer version, cannot be written.
    explicit Database(const std::filesystem::path& file, Open open = Open::kCreate);
    Database(const Database&) = delete;
    Database& operator=(const Database&) = delete;
    ~Database();

    Statement prepare(std::string_view sql) { return {database_, sql}; }
    void execute(const char* sql);
    int64_t changed_rows() const;  // by the last statement

    const std::filesystem::path& file() const { return file_; }

  private:
    std::filesystem::path file_;
    sqlite3* database_ = nullptr;
};

// Everything between this and commit() happens or does not. Takes the writer's lock at once.
class Transaction {
  public:
    explicit Transaction(Database& database);
    Transaction(const Transaction&) = delete;
    Transaction& operator=(const Transaction&) = delete;
    ~Transaction();  // rolls back what was not committed

    void commit();  // on disk when it returns

  private:
    Database& database_;
    bool open_ = true;
};

}  // namespace tessera

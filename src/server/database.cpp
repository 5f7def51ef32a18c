#include "server/database.h"

#include <chrono>

#include <fcntl.h>
#include <sqlite3.h>
#include <unistd.h>

#include "base/error.h"

namespace tessera {
namespace {

// A key's command and a server's ledger may want to write at the same time; each does so for
// milliseconds.
constexpr int kBusyMs = 5000;

// "TSRA": what makes a database ours (PRAGMA application_id).
constexpr int64_t kApplication = 0x54535241;
constexpr int64_t kSchemaVersion = 1;

// A price and a cost are picodollars, a time milliseconds since 1970. Rows of the ledger are only
// ever added; keys are revoked, never deleted, since rows name them.
constexpr const char* kSchema = R"(
CREATE TABLE keys (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    hash BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),
    name TEXT NOT NULL,
    base INTEGER NOT NULL,
    ultraspeed INTEGER NOT NULL,
    created INTEGER NOT NULL,
    revoked INTEGER,
    valid_from INTEGER,
    valid_until INTEGER,
    requests_per_minute INTEGER NOT NULL,
    tokens_per_minute INTEGER NOT NULL,
    concurrency INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX keys_name ON keys (name) WHERE revoked IS NULL;
CREATE TABLE keys_version (version INTEGER NOT NULL) STRICT;
INSERT INTO keys_version VALUES (0);
CREATE TRIGGER keys_created AFTER INSERT ON keys BEGIN
    UPDATE keys_version SET version = version + 1; END;
CREATE TRIGGER keys_changed AFTER UPDATE ON keys BEGIN
    UPDATE keys_version SET version = version + 1; END;
CREATE TABLE ledger (
    id INTEGER PRIMARY KEY,
    request_id TEXT NOT NULL UNIQUE,
    key INTEGER NOT NULL,
    mode TEXT NOT NULL,
    model TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    price_cached INTEGER NOT NULL,
    price_input INTEGER NOT NULL,
    price_output INTEGER NOT NULL,
    cost INTEGER NOT NULL,
    received INTEGER NOT NULL,
    first_token INTEGER,
    finished INTEGER NOT NULL,
    ended TEXT NOT NULL
) STRICT;
CREATE INDEX ledger_finished ON ledger (finished);
)";

[[noreturn]] void refuse(sqlite3* database) {
    const char* file = sqlite3_db_filename(database, nullptr);
    fail("{}: {}", file != nullptr && *file != '\0' ? file : "the store", sqlite3_errmsg(database));
}

// SQLite would make the file readable by whom the umask allows; hashes and usage are nobody else's.
void create_private(const std::filesystem::path& file) {
    const int descriptor = open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (descriptor >= 0) close(descriptor);  // if not, opening it as a database says why
}

int64_t pragma(Database& database, const char* name) {
    Statement asked = database.prepare(fmt::format("PRAGMA {}", name));
    return asked.step() ? asked.integer(0) : 0;
}

void bring_up_to_date(Database& database) {
    // Under the writer's lock: two processes may open a new file at once.
    Transaction transaction(database);
    const int64_t version = pragma(database, "user_version");
    const int64_t application = pragma(database, "application_id");
    const int64_t tables = [&] {
        Statement counted = database.prepare("SELECT count(*) FROM sqlite_schema");
        counted.step();
        return counted.integer(0);
    }();
    const std::string file = database.file().string();
    if (application != kApplication && (application != 0 || tables != 0))
        fail("{}: is a database, but not one of tessera's keys and ledger", file);
    if (version > kSchemaVersion)
        fail("{}: was made by a newer tessera (schema {}, this one knows {})", file, version,
             kSchemaVersion);
    if (version == 0) {
        database.execute(kSchema);
        database.execute(fmt::format("PRAGMA application_id = {}", kApplication).c_str());
        database.execute(fmt::format("PRAGMA user_version = {}", kSchemaVersion).c_str());
    }
    transaction.commit();
}

}  // namespace

UnixMs unix_ms_now() {
    return std::chrono::duration_cast<std::chrono::milliseconds>(
               std::chrono::system_clock::now().time_since_epoch())
        .count();
}

// ------------------------------------------------------------------ a statement

Statement::Statement(sqlite3* database, std::string_view sql) {
    if (sqlite3_prepare_v3(database, sql.data(), static_cast<int>(sql.size()),
                           SQLITE_PREPARE_PERSISTENT, &statement_, nullptr) != SQLITE_OK)
        refuse(database);
}

Statement::~Statement() {
    sqlite3_finalize(statement_);
}

Statement& Statement::bind(int parameter, int64_t value) {
    if (sqlite3_bind_int64(statement_, parameter, value) != SQLITE_OK)
        refuse(sqlite3_db_handle(statement_));
    return *this;
}

Statement& Statement::bind(int parameter, std::optional<int64_t> value) {
    if (value) return bind(parameter, *value);
    if (sqlite3_bind_null(statement_, parameter) != SQLITE_OK)
        refuse(sqlite3_db_handle(statement_));
    return *this;
}

Statement& Statement::bind(int parameter, std::string_view value) {
    if (sqlite3_bind_text64(statement_, parameter, value.data(), value.size(), SQLITE_TRANSIENT,
                            SQLITE_UTF8) != SQLITE_OK)
        refuse(sqlite3_db_handle(statement_));
    return *this;
}

Statement& Statement::bind_bytes(int parameter, std::span<const uint8_t> bytes) {
    if (sqlite3_bind_blob64(statement_, parameter, bytes.data(), bytes.size(), SQLITE_TRANSIENT) !=
        SQLITE_OK)
        refuse(sqlite3_db_handle(statement_));
    return *this;
}

bool Statement::step() {
    const int result = sqlite3_step(statement_);
    if (result == SQLITE_ROW) return true;
    if (result == SQLITE_DONE) return false;
    // The words first: reset may replace them.
    try {
        refuse(sqlite3_db_handle(statement_));
    } catch (...) {
        reset();
        throw;
    }
}

void Statement::reset() {
    sqlite3_reset(statement_);  // says again what step() said
    sqlite3_clear_bindings(statement_);
}

void Statement::run() {
    while (step()) continue;
    reset();
}

int64_t Statement::integer(int column) const {
    return sqlite3_column_int64(statement_, column);
}

std::optional<int64_t> Statement::integer_or_null(int column) const {
    if (sqlite3_column_type(statement_, column) == SQLITE_NULL) return std::nullopt;
    return integer(column);
}

std::string Statement::text(int column) const {
    const auto* begin = reinterpret_cast<const char*>(sqlite3_column_text(statement_, column));
    if (begin == nullptr) return {};
    return {begin, static_cast<size_t>(sqlite3_column_bytes(statement_, column))};
}

std::span<const uint8_t> Statement::bytes(int column) const {
    const auto* begin = static_cast<const uint8_t*>(sqlite3_column_blob(statement_, column));
    return {begin, static_cast<size_t>(sqlite3_column_bytes(statement_, column))};
}

// ------------------------------------------------------------------ a database

Database::Database(const std::filesystem::path& file, Open open) : file_(file) {
    const bool there = std::filesystem::exists(file);
    if (!there && open == Open::kMustExist)
        fail("{}: there is no such store; tessera keys create makes one", file.string());
    if (!there) create_private(file);
    const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE;
    const int result = sqlite3_open_v2(file.c_str(), &database_, flags, nullptr);
    try {
        if (result != SQLITE_OK)
            fail("{}: cannot be opened as a store: {}", file.string(), sqlite3_errstr(result));
        sqlite3_busy_timeout(database_, kBusyMs);
        // WAL: readers and the one writer do not wait for each other. FULL: a commit is on the disk
        // itself when it returns, so that not even a power cut takes it back.
        execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA trusted_schema = 0");
        bring_up_to_date(*this);
    } catch (...) {
        sqlite3_close(database_);
        throw;
    }
}

Database::~Database() {
    sqlite3_close(database_);
}

void Database::execute(const char* sql) {
    if (sqlite3_exec(database_, sql, nullptr, nullptr, nullptr) != SQLITE_OK) refuse(database_);
}

int64_t Database::changed_rows() const {
    return sqlite3_changes64(database_);
}

Transaction::Transaction(Database& database) : database_(database) {
    database_.execute("BEGIN IMMEDIATE");
}

Transaction::~Transaction() {
    if (!open_) return;
    try {
        database_.execute("ROLLBACK");
    } catch (const Error&) {  // SQLite has rolled back by itself, as it does when a disk is full
    }
}

void Transaction::commit() {
    database_.execute("COMMIT");
    open_ = false;
}

}  // namespace tessera

#include "weights/quantize_journal.h"

#include <cerrno>
#include <system_error>

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/error.h"
#include "checkpoint/checkpoint.h"

namespace tessera {
namespace {

constexpr const char* kName = "quantize.journal";

std::string last_error() {
    return std::generic_category().message(errno);
}

}  // namespace

QuantizeJournal::QuantizeJournal(const std::filesystem::path& folder, const Json& job)
    : folder_(folder), file_(folder / kName) {
    descriptor_ = open(file_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (descriptor_ < 0) fail("{}: cannot be written: {}", file_.string(), last_error());
    if (flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
        close(descriptor_);
        fail("{}: another process is writing this folder", folder.string());
    }
    try {
        const std::string text = read_text_file(file_);
        Json begun;
        size_t at = 0;
        // A line that was cut off by the kill has no end: its shard is written again.
        for (size_t end; (end = text.find('\n', at)) != text.npos; at = end + 1) {
            const Json line = parse_json(text.substr(at, end - at), file_.string());
            if (at == 0) {
                begun = line;
            } else {
                bytes_of_[line.at("shard").get<std::string>()] = line.at("bytes").get<uint64_t>();
            }
        }
        if (!begun.is_null() && begun != job)
            fail(
                "{}: was begun from another folder or with other options: give those, or remove it",
                folder.string());
        if (ftruncate(descriptor_, static_cast<off_t>(at)) != 0)
            fail("{}: cannot be written: {}", file_.string(), last_error());
        if (begun.is_null()) append(job);
    } catch (const Json::exception&) {
        close(descriptor_);
        fail("{}: is no journal of this program: remove the folder", file_.string());
    } catch (...) {
        close(descriptor_);
        throw;
    }
}

QuantizeJournal::~QuantizeJournal() {
    close(descriptor_);
}

bool QuantizeJournal::is_finished(const std::string& shard) const {
    const auto found = bytes_of_.find(shard);
    std::error_code absent;
    return found != bytes_of_.end() &&
           std::filesystem::file_size(folder_ / shard, absent) == found->second;
}

void QuantizeJournal::finished(const std::string& shard, uint64_t bytes) {
    bytes_of_[shard] = bytes;
    append({{"shard", shard}, {"bytes", bytes}});
}

void QuantizeJournal::append(const Json& line) {
    const std::string text = line.dump() + "\n";
    const ssize_t count = write(descriptor_, text.data(), text.size());
    if (count != static_cast<ssize_t>(text.size()) || fsync(descriptor_) != 0)
        fail("{}: cannot be written: {}", file_.string(), last_error());
}

void QuantizeJournal::remove() {
    std::filesystem::remove(file_);
}

}  // namespace tessera

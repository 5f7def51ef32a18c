// A store in a folder of its own, gone when the test is over.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

#include "server/database.h"

namespace tessera {

class TemporaryStore {
  public:
    TemporaryStore() {
        std::string name = std::filesystem::temp_directory_path() / "tessera-store-XXXXXX";
        folder_ = mkdtemp(name.data());
    }
    ~TemporaryStore() { std::filesystem::remove_all(folder_); }
    TemporaryStore(const TemporaryStore&) = delete;
    TemporaryStore& operator=(const TemporaryStore&) = delete;

    std::filesystem::path file() const { return folder_ / "store.db"; }
    std::filesystem::path folder() const { return folder_; }

  private:
    std::filesystem::path folder_;
};

}  // namespace tessera

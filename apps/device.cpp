#include "device.h"

namespace tessera {

CLI::Option* add_device_option(CLI::App& command, Device& device) {
    return command
        .add_option_function<std::string>(
            "--device",
            [&device](const std::string& given) {
                device = given == "gpu" ? Device::kGpu : Device::kCpu;
            },
            "Decode on the processor, or on the first GPU (docs/GPU.md)")
        ->check(CLI::IsMember({"cpu", "gpu"}))
        ->default_str("cpu");
}

}  // namespace tessera

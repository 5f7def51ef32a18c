#include "base/check.h"
#include "tiles/kernels.h"

namespace tessera {

namespace portable {
extern const Kernels kTable;
}
#if defined(TESSERA_X86_KERNELS)
namespace avx2 {
extern const Kernels kTable;
}
namespace avx512 {
extern const Kernels kTable;
}
namespace avx512_vnni {
extern const Kernels kTable;
}
#endif

const Kernels* find_kernels(Isa isa) {
    switch (isa) {
        case Isa::portable:
            return &portable::kTable;
#if defined(TESSERA_X86_KERNELS)
        case Isa::avx2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &avx2::kTable
                                                                                   : nullptr;
        case Isa::avx512:
            return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
                       ? &avx512::kTable
                       : nullptr;
        case Isa::avx512_vnni:
            return find_kernels(Isa::avx512) && __builtin_cpu_supports("avx512vnni")
                       ? &avx512_vnni::kTable
                       : nullptr;
#endif
        default:
            return nullptr;
    }
}

const Kernels& best_kernels() {
    const Kernels* best = nullptr;
    for (const Isa isa : kIsas) {
        if (const Kernels* found = find_kernels(isa)) best = found;
    }
    CHECK(best != nullptr);
    return *best;
}

std::string_view isa_name(Isa isa) {
    switch (isa) {
        case Isa::portable:
            return "portable";
        case Isa::avx2:
            return "avx2";
        case Isa::avx512:
            return "avx512";
        case Isa::avx512_vnni:
            return "avx512-vnni";
    }
    return "";
}

std::optional<Isa> isa_of(std::string_view name) {
    for (const Isa isa : kIsas) {
        if (isa_name(isa) == name) return isa;
    }
    return std::nullopt;
}

}  // namespace tessera

// Where a model lives: a folder, or `org/name` in the local Hugging Face cache (never the network).
#pragma once

#include <string>

namespace shoal {

// A path that exists is returned as it is. `org/name` is looked up in $HF_HUB_CACHE, else
// $HF_HOME/hub, else ~/.cache/huggingface/hub, at refs/<revision>, or at the snapshot that
// `revision` names by its commit. Throws InvalidInput naming the places that were searched. Reads
// the environment: not while another thread changes it.
std::string resolve_model_dir(const std::string& model, const std::string& revision = "main");

}  // namespace shoal

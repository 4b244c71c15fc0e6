# frozen_string_literal: true

Puppet::Type.newtype(:netspace) do
  @doc = <<~TEXT
    A host as a declaration of netspace says: isolated environments, their interfaces and links. What is not declared
    is removed. With noop, Puppet tells the changes and makes none.

        netspace { 'this host':
          declaration => lookup('netspace'),
        }
  TEXT

  newparam(:name, namevar: true) do
    desc 'Any text.'
  end

  newparam(:declaration) do
    desc 'The declaration, which in a pillar file stands under netspace.'
    validate { |value| raise ArgumentError, 'declaration: expected a Hash' unless value.is_a?(Hash) }
  end

  newparam(:python) do
    desc "The host's Python that has netspace."
    defaultto '/usr/bin/python3'
  end

  newparam(:instance) do
    desc 'The instance whose records are used.'
    defaultto 'netspace'
  end

  newproperty(:ensure) do
    desc 'The host is as declared.'
    newvalue(:declared) { provider.apply }
    defaultto :declared

    def retrieve
      provider.different? ? :different : :declared
    end

    def change_to_s(_old, _new)
      provider.steps
    end

    # In a report of noop.
    def is_to_s(_value)
      "different (#{provider.steps})"
    end
  end

  validate { raise ArgumentError, 'declaration: missing' unless self[:declaration] }
end
